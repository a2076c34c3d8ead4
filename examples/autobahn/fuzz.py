"""Runs the Autobahn test suite against examples/ws_echo.rs, and says what came of it: docs/conformance.md.

    python2.7 examples/autobahn/fuzz.py target/ws-echo/client target/autobahn-report

The suite has no option for a client's certificate, and a gateway has none to do without: this shows the one that the
example has made. Exit codes: 0 every case is as it should be; 1 some are not; 2 usage."""
from __future__ import print_function
import argparse, collections, io, json, os, sys
try:
    from autobahntestsuite import fuzzing
    from twisted.internet import reactor, ssl
except (ImportError, SyntaxError) as error:
    sys.exit("the suite is not to be had in this Python: %s; it needs 2.7 and autobahntestsuite (docs/conformance.md)" % error)

# Compression: a gateway has no WebSocket extensions.
NOT_SPOKEN = ["12.*", "13.*"]
GOOD = ("OK", "NON-STRICT", "INFORMATIONAL")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("client", help="the folder client/ that the example has made")
parser.add_argument("reports", help="a folder for the suite's reports; its index.html leads to them")
parser.add_argument("--port", type=int, default=9001, help="of localhost [%(default)s]")
parser.add_argument("--cases", default="*", help="which, parted by commas: 1.*,9.1.2")
args = parser.parse_args()

def text(name):
    try:
        with io.open(os.path.join(args.client, name), encoding="ascii") as found:
            return found.read()
    except (IOError, OSError) as error:
        parser.error("no folder that examples/ws_echo.rs has made: %s" % error)

shown = ssl.PrivateCertificate.loadPEM(text("device.key") + text("device.crt"))
trusted = ssl.Certificate.loadPEM(text("ca.crt"))

class Factory(fuzzing.FuzzingClientFactory):
    """The suite's client, with a certificate."""
    def nextServer(self):
        more = fuzzing.FuzzingClientFactory.nextServer(self)
        self.contextFactory = ssl.optionsForClientTLS(u"localhost", trustRoot=trusted, clientCertificate=shown)
        return more

server = {"agent": "doorward", "url": "wss://localhost:%d/v1/device" % args.port, "protocols": ["doorward.v1.jws"]}
factory = Factory({"outdir": args.reports, "servers": [server], "cases": args.cases.split(","),
                   "exclude-cases": NOT_SPOKEN, "exclude-agent-cases": {}})
reactor.run()

with open(os.path.join(args.reports, "index.json")) as found:
    results = json.load(found).get("doorward", {})
groups, bad = collections.defaultdict(collections.Counter), []
for case, result in results.items():
    number = [int(part) for part in case.split(".")]
    verdicts = result["behavior"], result["behaviorClose"]
    groups[number[0]][verdicts[0]] += 1
    if not all(verdict in GOOD for verdict in verdicts):
        bad.append((number, "%s: %s; its close: %s, %s" % (case, verdicts[0], verdicts[1], result["remoteCloseCode"])))
print()
for group in sorted(groups):
    print("%3d  %s" % (group, ", ".join("%d %s" % (count, name) for name, count in sorted(groups[group].items()))))
print("%d cases of %d, %d not as they should be" % (len(results), len(factory.specCases), len(bad)))
for _, words in sorted(bad):
    print("  " + words)
sys.exit(1 if bad or len(results) < len(factory.specCases) else 0)
