"""A Doorward device, written from docs/protocol.md: it publishes COUNT temperatures and waits for their acks. Exit
codes: 0 all are stored; 1 not all are, try again later; 2 usage; 3 look into it before trying again: the device is
revoked, or the gateway's messages fail our checks."""
import argparse, base64, json, pathlib, random, secrets, ssl, sys, time
from contextlib import closing
import jwt
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

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

def talk(socket, link, count):
    print("connected to", hear(socket, link, 30)["gateway"], "as", link["me"])
    todo = [(secrets.token_urlsafe(16), round(random.uniform(18, 24), 2)) for _ in range(count)]
    sent, waiting = 0, {}  # what has no answer yet, under the seq that it was sent with
    while todo or waiting:
        while todo:
            (name, value), sent = todo.pop(0), sent + 1
            claims = {"iss": link["me"], "aud": "gateway", "sid": link["sid"], "seq": sent, "op": "publish", "id": name,
                      "iat": round(link["clock"] + time.monotonic(), 3), "ch": f"devices/{link['me']}/temperature"}
            socket.send(jwt.encode({**claims, "data": value}, link["key"], "HS256", {"kid": link["kid"]}))
            waiting[sent] = (name, value)
        said = hear(socket, link, 75)
        if said["op"] == "ack":
            for seq in [s for s in waiting if any(first <= s <= last for first, last in said["acks"])]:
                print("stored", *waiting.pop(seq))
        elif said["op"] == "reject" and said["ref"] in waiting:
            name, value = waiting.pop(said["ref"])
            if said["error"] not in ("stale", "rate_limited", "unavailable"):
                stop(f"refused {name}: {said['error']}: {said['detail']}", 1)
            todo.append((name, value))  # signed anew, under the same id
            time.sleep(said.get("retry_after", 0))
        elif said["op"] in ("reject", "bye"):
            print(said["op"], said.get("error", ""), said.get("detail", said.get("reason")), file=sys.stderr)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle", type=pathlib.Path, help="the folder with device.json and the certificates")
parser.add_argument("count", type=int, nargs="?", default=5)
parser.add_argument("--url", help="in place of the one in device.json")
args = parser.parse_args()
try:
    config = json.loads((args.bundle / "device.json").read_text())
    tls = ssl.create_default_context(cafile=args.bundle / "ca.crt")
    tls.load_cert_chain(args.bundle / "device.crt", args.bundle / "device.key")
except OSError as error:
    stop(f"{args.bundle} is not a device's bundle: {error}", 2)
tls.set_alpn_protocols(["http/1.1"])
kid, key = str(config["key"]["version"]), base64.urlsafe_b64decode(config["key"]["hmac"] + "=")
url = f"{args.url or config['url']}?key={kid}"  # have the session signed with the version that we hold
try:
    with connect(url, ssl=tls, subprotocols=["doorward.v1.jws"], compression=None) as socket, closing(socket):
        talk(socket, {"me": config["device"], "kid": kid, "key": key, "heard": 0}, args.count)
except InvalidStatus as error:
    problem = json.loads(error.response.body or b"{}")
    code = 3 if problem.get("type") == "urn:doorward:problem:device-revoked" else 1
    stop(f"refused with {error.response.status_code}: {problem.get('detail')}", code)
except ConnectionClosed as error:
    stop(f"closed: {error}", 3 if error.rcvd and error.rcvd.code == 4003 else 1)
except (OSError, InvalidHandshake) as error:
    stop(f"no connection to {url}, or no answer: {error}", 1)
