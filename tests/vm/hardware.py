"""Hardware timestamps in the virtual machine: two igb NICs in two network namespaces, `coeval` on both ends.

Truths: both ends run on one kernel, so their CLOCK_REALTIMEs, and their CLOCK_MONOTONIC_RAWs, differ by 0, whatever is
done to the PHCs. A PHC differs from CLOCK_REALTIME by what `phc_ctl cmp` says.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
COEVAL = os.path.join(HERE, "../../target/release/coeval")
# phc_ctl reads PHC and CLOCK_REALTIME one after the other.
CMP_ERROR_NS = 20_000

children = []


def run(command):
    return subprocess.run(command.split(), check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def phc_ctl(phc, command):
    return run(f"phc_ctl -- /dev/ptp{phc} {command}")


def start(name, command):
    log = open(f"/tmp/{name}.log", "w")
    child = subprocess.Popen(command.split(), stdout=log, stderr=log, env={**os.environ, "RUST_LOG": "info"})
    children.append(child)
    return child


def log_of(name):
    with open(f"/tmp/{name}.log") as log:
        return log.read()


def stop(child):
    child.terminate()
    child.wait()


def check(condition, message):
    if not condition:
        for log in sorted(os.listdir("/tmp")):
            if log.endswith(".log"):
                print(f"--- {log}\n{log_of(log[:-4])[-3000:]}")
        sys.exit(f"FAILED: {message}")


def eventually(what, condition, patience_s=60):
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.2)
    check(False, f"{what}: not within {patience_s} s")


def set_up_network():
    run("modprobe igb")
    run("ip link set lo up")

    def nics():
        every = sorted(os.listdir("/sys/class/net"))
        drivers = {nic: os.path.realpath(f"/sys/class/net/{nic}/device/driver") for nic in every}
        return [nic for nic in every if drivers[nic].endswith("/igb")]

    names = eventually("two igb NICs", lambda: len(nics()) == 2 and nics())
    for number, nic in enumerate(names):
        ns = f"h{number}"
        run(f"ip netns add {ns}")
        run(f"ip link set {nic} netns {ns}")
        run(f"ip -n {ns} addr add 10.9.0.{number + 1}/24 dev {nic}")
        run(f"ip -n {ns} link set lo up")
        run(f"ip -n {ns} link set {nic} up")
        # Without this, ptp4l's own requests to the multicast group are stamped and then dropped, and as the card holds one
        # stamp until it is fetched, it stamps nothing more for five seconds.
        run(f"ip -n {ns} maddr add 01:00:5e:00:00:6b dev {nic}")
    eventually("carrier", lambda: "NO-CARRIER" not in "".join(run(f"ip -n h{i} link show {nic}") for i, nic in enumerate(names)))
    return names


def filter_of(ns, nic):
    return int(re.search(r"rx_filter (\d+)", run(f"ip netns exec {ns} hwstamp_ctl -i {nic}"))[1])


def probe(options=""):
    command = f"ip netns exec h0 {COEVAL} probe 10.9.0.2 --count 20 --interval 50ms --json {options}"
    lines = [json.loads(line) for line in run(command).splitlines() if line.startswith("{")]
    answers = [line["exchange"]["answer"] for line in lines if "exchange" in line]
    return [answer for answer in answers if answer], lines[-1]["summary"]


def a_stock_daemons_clock(nic):
    """ptp4l stamps by its PHC: the probe must say how far that is from this end's CLOCK_REALTIME."""
    with open("/tmp/ptp4l.cfg", "w") as config:
        config.write("[global]\nfree_running 1\nslaveOnly 1\ntx_timestamp_timeout 200\n")
    daemon = start("ptp4l", f"ip netns exec h1 ptp4l -f /tmp/ptp4l.cfg -4 -H -P -i {nic} -p /dev/ptp1 -m")
    phc_ctl(1, "adj 0.003")
    eventually("ptp4l answers", lambda: probe()[0])

    def truth():
        return -int(re.search(r"is (-?\d+)ns", phc_ctl(1, "cmp"))[1])

    before = truth()
    answers, summary = probe()
    after = truth()
    classes = {(answer["sent"], answer["received"]) for answer in answers}
    print(f"a PHC off by {before / 1e6:.4f} to {after / 1e6:.4f} ms: probe says {summary['offset_ns'] / 1e6:.4f} ms "
          f"± {summary['hard_ns'] / 1e3:.2f} µs, stamps {classes}")
    check(("hardware", "hardware") in classes, f"no hardware stamps: {classes}")
    low, high = min(before, after) - CMP_ERROR_NS, max(before, after) + CMP_ERROR_NS
    offset, hard = summary["offset_ns"], summary["hard_ns"]
    check(offset - hard <= high and low <= offset + hard, "the bound does not cover the PHC's offset")
    stop(daemon)


def start_pair(name, event_port, control_port, api_port):
    """A host and a server of its own: at PTP's port with hardware stamps, at any other with the kernel's."""
    os.makedirs(f"/tmp/{name}")
    start(f"host-{name}", f"ip netns exec h1 {COEVAL} host --name {name} --listen 10.9.0.2:{control_port} --insecure "
          f"--time 10.9.0.2:{event_port} --nbd unix:///tmp/{name}.sock --volumes /tmp/{name}")
    with open(f"/tmp/{name}.toml", "w") as config:
        config.write(f'listen = "10.9.0.1:{api_port}"\nstate = "/tmp/{name}-server"\ninsecure = true\n'
                     f'[time]\nport = {event_port}\n[[host]]\nname = "{name}"\ntime = "10.9.0.2:{event_port}"\n'
                     f'control = "http://10.9.0.2:{control_port}"\n')
    start(f"server-{name}", f"ip netns exec h0 {COEVAL} server --config /tmp/{name}.toml")


def skew(api_port):
    command = f"ip netns exec h0 {COEVAL} skew --json --insecure --server http://10.9.0.1:{api_port}"
    result = subprocess.run(command.split(), capture_output=True, text=True)
    return json.loads(result.stdout)["hosts"][0] if result.returncode == 0 else {"state": "none"}


def observe(api_port, what):
    """One report: its bound, if it has any, must cover the truth, which is 0."""
    row = skew(api_port)
    if row.get("hard_ns") is not None:
        check(abs(row["offset_ns"]) <= row["hard_ns"], f"{what}: the bound does not cover 0: {row}")
    check(row["state"] != "broken", f"{what}: the exchanges contradict each other: {row}")
    return row


def is_hardware():
    row = skew(7420)
    return row["state"] == "ok" and row["timestamps"] == "hardware" and row["exchanges"] >= 64


def steady():
    eventually("hardware stamps on both ends", is_hardware)
    eventually("the kernel's stamps", lambda: skew(7430)["state"] == "ok" and skew(7430)["exchanges"] >= 64)
    rows = {name: [observe(port, name) for _ in range(15)] for name, port in [("hardware", 7420), ("software", 7430)]}
    figures = {}
    for name, of in rows.items():
        classes = [row["timestamps"] for row in of]
        figures[name] = statistics.median(row["timeline_ns"] for row in of)
        wall = statistics.median(row["hard_ns"] for row in of)
        trips = of[-1]["rtt_ns"]
        print(f"{name}: half-width {figures[name] / 1e3:.2f} µs, of CLOCK_REALTIME {wall / 1e3:.2f} µs (medians), "
              f"round trip p50 {trips['p50'] / 1e3:.2f} µs, "
              f"lost {of[-1]['lost']} of {of[-1]['exchanges']}, reports of this class: {classes.count(name)} of {len(of)}")
        check(classes.count(name) > len(of) / 2, f"the class is not {name}: {classes}")
    print(f"hardware is {figures['software'] / figures['hardware']:.1f} times sharper")
    check(figures["hardware"] * 10 <= figures["software"], "that is less than ten times")


def disturbed():
    """Somebody else sets the PHCs, as ptp4l would or as nobody should."""
    widest = 0
    # phc_ctl takes seconds to step by, and ppb to run faster by.
    for change in ["adj 0.000001", "adj -0.000003", "adj 0.00001", "adj -0.0002", "adj 0.003", "adj -0.02", "adj 5",
                   "freq 20000", "freq -50000", "freq 900000", "freq -40000000", "freq 0"]:
        for phc in [0, 1]:
            phc_ctl(phc, change)
            for _ in range(3):
                row = observe(7420, f"ptp{phc} {change}")
                widest = max(widest, row.get("hard_ns") or 0)
    print(f"24 steps and changes of frequency: every bound covered the truth, the widest was ± {widest / 1e3:.2f} µs")
    eventually("hardware stamps again", is_hardware)
    noticed = [len(re.findall("clock was set", log_of(name))) for name in ["host-hardware", "server-hardware"]]
    print(f"steps that were noticed: {noticed[0]} on the host, {noticed[1]} on the server")
    check(min(noticed) >= 3, "no large step was noticed")


def with_ptp4l(nics):
    """ptp4l steers one of the PHCs by the same cards, over Ethernet."""
    with open("/tmp/l2.cfg", "w") as config:
        # The card holds one transmit stamp, so one of the two goes without now and then, which is a fault to ptp4l.
        config.write("[global]\nlogSyncInterval -2\nlogMinDelayReqInterval -1\nlogAnnounceInterval -1\nsummary_interval -2\n"
                     "tx_timestamp_timeout 50\nfault_reset_interval ASAP\nfirst_step_threshold 0.00002\n")
    master = start("master", f"ip netns exec h0 ptp4l -f /tmp/l2.cfg -2 -H -i {nics[0]} -p /dev/ptp0 -m --priority1 10")
    slave = start("slave", f"ip netns exec h1 ptp4l -f /tmp/l2.cfg -2 -H -i {nics[1]} -p /dev/ptp1 -s -m")
    eventually("ptp4l steers", lambda: "MASTER_CLOCK_SELECTED" in log_of("slave"))
    classes = [observe(7420, "beside ptp4l").get("timestamps") for _ in range(20)]
    adjusted = len(re.findall("freq", log_of("slave")))
    print(f"ptp4l set the frequency {adjusted} times")
    check(adjusted > 0, "ptp4l steered nothing")
    print(f"beside ptp4l: every bound covered the truth; {classes.count('hardware')} of {len(classes)} reports of hardware class")
    stop(slave)
    stop(master)


def main():
    nics = set_up_network()
    a_stock_daemons_clock(nics[1])
    start_pair("hardware", 319, 7421, 7420)
    start_pair("software", 4319, 7422, 7430)
    steady()
    # PTPv2 events over any network, what igb makes of the narrower one for UDP.
    check(filter_of("h0", nics[0]) == 12, "the receive filter is another one")
    disturbed()
    with_ptp4l(nics)
    check(filter_of("h0", nics[0]) == 12, "the receive filter was narrowed")
    for child in children:
        check(child.returncode is not None or child.poll() is None, "a daemon died")
    print("PASSED")


try:
    main()
finally:
    for child in children:
        child.poll() is None and child.kill()
