"""A Doorward device, written from docs/protocol.md: it publishes COUNT temperatures and waits for their acks. If it is
asked to, it renews its certificate. Exit codes: 0 all are stored; 1 not all are, or no new certificate came, try again
later; 2 usage; 3 look into it before trying again: the device is revoked, or the gateway's messages fail our checks."""
import argparse, base64, json, pathlib, random, secrets, ssl, sys, time
from contextlib import closing
import jwt
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect
import renewal

def stop(words, code):
    print(words, file=sys.stderr)
    sys.exit(code)

def hear(socket, link, seconds):
    """One message, after the checks of R-16. The gateway's `iat` is not judged, but taken as the time."""
    frame = socket.recv(timeout=seconds)
    try:
        header = jwt.get_unverified_header(frame)
        claims = jwt.decode(frame, link["key"], ["HS256"], audience=link["me"], issuer="gateway", options={
            "verify_iat": False, "strict_aud": True, "require": ["iss", "aud", "sid", "seq", "iat", "op"]})
        good = (set(header) <= {"alg", "kid", "typ"} and header["kid"] == link["kid"] and 0 < len(claims["sid"]) <= 64
                and type(claims["seq"]) is int and link["heard"] < claims["seq"] < 2**53
                and (claims["sid"] == link["sid"] if "sid" in link else claims["op"] == "welcome"))
    except (jwt.PyJWTError, KeyError, TypeError) as error:
        good, claims = False, error
    if not good:
        socket.close(4000)
        stop(f"a message of the gateway fails our checks: {claims!r}", 3)
    link.update(sid=claims["sid"], heard=claims["seq"], clock=claims["iat"] - time.monotonic())
    return claims

def say(socket, link, op, **members):
    """Signs and sends; the `seq` that it went under."""
    link["sent"] += 1
    claims = {"iss": link["me"], "aud": "gateway", "sid": link["sid"], "seq": link["sent"], "op": op, **members,
              "iat": round(link["clock"] + time.monotonic(), 3)}
    socket.send(jwt.encode(claims, link["key"], "HS256", {"kid": link["kid"]}))
    return link["sent"]

def talk(socket, link, todo, shows_new, may_renew):
    """One session. `True` where a new certificate has come: what has no answer yet goes into the next one (R-23)."""
    welcome = hear(socket, link, 30)
    print("connected to", welcome["gateway"], "as", link["me"])
    if shows_new:
        renewal.promote(args.bundle)
        print("renewed")
    late = welcome["certificate_expires"] <= welcome["iat"]  # such a session can do nothing but renew
    if late and not may_renew:
        stop("the old certificate has expired, and the new one is not let in", 1)
    renew = late or (args.renew and may_renew and not shows_new)
    waiting, asked = {}, None  # what has no answer yet, under the seq that it was sent with
    if renew:
        asked = say(socket, link, "renew", csr=renewal.request(args.bundle, link["me"]))
    hello = None if todo or asked else say(socket, link, "hello")  # until a message of ours nothing is proven
    while todo or waiting or asked or hello:
        while todo and not late:
            name, value = todo.pop(0)
            seq = say(socket, link, "publish", id=name, ch=f"devices/{link['me']}/temperature", data=value)
            waiting[seq] = (name, value)
        said = hear(socket, link, 75)
        if said["op"] == "ack":
            acked = [s for s in [hello, *waiting] if s and any(first <= s <= last for first, last in said["acks"])]
            hello = None if hello in acked else hello
            for seq in [s for s in acked if s in waiting]:
                print("stored", *waiting.pop(seq))
        elif said["op"] == "rotate" and said["what"] == "certificate" and may_renew and not asked:
            asked = say(socket, link, "renew", csr=renewal.request(args.bundle, link["me"]))
        elif said["op"] == "certificate" and said["ref"] == asked:
            if fault := renewal.keep(args.bundle, link["me"], said["chain"]):
                renewal.forget(args.bundle)
                stop(f"the certificate that came cannot be used: {fault}", 1)
            todo[:0] = waiting.values()
            return True
        elif said["op"] == "reject" and asked and said["ref"] == asked:
            if said["error"] == "bad_message":  # that key will never do; at the others it asks again with the same
                renewal.forget(args.bundle)
            if renew:
                stop(f"no new certificate: {said['error']}: {said['detail']}", 1)
            asked = None
        elif said["op"] == "reject" and said["ref"] in waiting:
            name, value = waiting.pop(said["ref"])
            if said["error"] not in ("stale", "rate_limited", "unavailable"):
                stop(f"refused {name}: {said['error']}: {said['detail']}", 1)
            todo.append((name, value))  # signed anew, under the same id
            time.sleep(said.get("retry_after", 0))
        elif said["op"] in ("reject", "bye"):
            print(said["op"], said.get("error", ""), said.get("detail", said.get("reason")), file=sys.stderr)
    return False

def session(files, todo, may_renew):
    """Connects with one pair of files, and talks."""
    tls = ssl.create_default_context(cafile=args.bundle / "ca.crt")
    tls.load_cert_chain(*files)
    tls.set_alpn_protocols(["http/1.1"])
    kid, key = str(config["key"]["version"]), base64.urlsafe_b64decode(config["key"]["hmac"] + "=")
    link = {"me": config["device"], "kid": kid, "key": key, "heard": 0, "sent": 0}
    url = f"{args.url or config['url']}?key={kid}"  # have the session signed with the version that we hold
    options = {"subprotocols": ["doorward.v1.jws"], "compression": None, "open_timeout": 15}
    for attempt in range(3):  # this library's handshake hangs now and then, on its own side
        try:
            socket = connect(url, ssl=tls, **options)
            break
        except TimeoutError:
            if attempt == 2:
                raise
    with socket, closing(socket):
        return talk(socket, link, todo, files[1] is None, may_renew)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle", type=pathlib.Path, help="the folder with device.json and the certificates")
parser.add_argument("count", type=int, nargs="?", default=5)
parser.add_argument("--url", help="in place of the one in device.json")
parser.add_argument("--renew", action="store_true", help="get a new certificate, without being asked to")
args = parser.parse_args()
try:
    config = json.loads((args.bundle / "device.json").read_text())
    for name in ("ca.crt", "device.crt", "device.key"):
        (args.bundle / name).read_bytes()
except OSError as error:
    stop(f"{args.bundle} is not a device's bundle: {error}", 2)
todo = [(secrets.token_urlsafe(16), round(random.uniform(18, 24), 2)) for _ in range(args.count)]
again = True
while again:
    pairs = renewal.pairs(args.bundle)
    for files in pairs:
        others = files != pairs[-1]  # the one before still holds, and neither is thrown away
        try:
            # With a new one that is not let in, it makes do with the old one until its next run.
            again = session(files, todo, may_renew=files == pairs[0])
            break
        except InvalidStatus as error:
            problem = json.loads(error.response.body or b"{}")
            kind = problem.get("type", "").removeprefix("urn:doorward:problem:")
            words = f"refused with {error.response.status_code}: {problem.get('detail')}"
            if not (others and kind.startswith("certificate-")):
                stop(words, 3 if kind == "device-revoked" else 1)
            if kind == "certificate-revoked":  # it will never be let in: the next run asks for another one
                renewal.forget(args.bundle)
        except ConnectionClosed as error:
            code, words = error.rcvd.code if error.rcvd else None, f"closed: {error}"
            if not (others and code in (4001, 4004)):
                stop(words, 3 if code == 4003 else 1)
        except (OSError, InvalidHandshake) as error:
            words = f"no connection, or no answer: {error}"
            if not others:
                stop(words, 1)
        print("not let in by the new certificate, trying the old one:", words, file=sys.stderr)
