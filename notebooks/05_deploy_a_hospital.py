# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From an invitation to the first round: deploying a hospital
#
# One coordinator and some hospitals do here what they would do in earnest, command by command: a
# certificate authority, invitations, keys, ledgers, checks, TLS connections, a study, and the proof
# of what it cost. Everything is a real process of its own on this machine (127.0.0.1); only the
# patients are synthetic. In earnest each of the parties sits at a terminal of its own, and what
# goes through the folder `mail` here goes by e-mail.
#
# The words after `$` are what a person types. Nothing of a hospital or of the server runs inside
# the notebook, and nothing outlives it: a watchman ends every process when a cell fails, when the
# notebook is through, and even when its kernel is killed. It takes two or three minutes.
#
# | who | has | never gets |
# |---|---|---|
# | a hospital's IT | images, keys, a ledger of its patients' privacy | others' updates |
# | the coordinator | the server, a list of hospitals, noisy updates | images, ledgers, keys |

# %%
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import matplotlib.pyplot as plt
from IPython import get_ipython

import medfl

SIZES = {
    "default": {
        "patients": (8, 6, 6),
        "shape": (64, 64, 48),
        "spacing": (2.8, 2.8, 3.4),
        "crop": 24,
        "rounds": 4,
    },
    "small": {  # for the tests
        "patients": (4, 4),
        "shape": (32, 32, 24),
        "spacing": (5.6, 5.6, 6.8),
        "crop": 16,
        "rounds": 1,
    },
}
# Set MEDFL_NOTEBOOK_SIZE=small before starting for the second one.
size = SIZES[os.environ.get("MEDFL_NOTEBOOK_SIZE", "default")]

# What a hospital's machine remembers of its patients' privacy, it remembers permanently.
if Path("/var/lib/medfl-witness").exists():
    raise RuntimeError("This machine is a hospital's: try a deployment on another one.")

folder = tempfile.TemporaryDirectory(prefix="medfl-notebook-")
os.chdir(folder.name)
plt.rcParams.update(
    {"figure.dpi": 80, "font.size": 9, "axes.titlesize": 9, "axes.spines.top": False}
    | {"axes.spines.right": False, "legend.frameon": False}
)

# %% [markdown]
# Three small helpers come first: one runs a command and shows what it prints, one starts a command
# that goes on, with its watchman, and one ends them all.

# %%
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if "COLOR" not in name},
    "XDG_STATE_HOME": str(Path("account").resolve()),  # in place of this account's own witness
    "MPLCONFIGDIR": str(Path("account").resolve()),
    "OMP_NUM_THREADS": "1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
    "COLUMNS": "96",
    "NO_COLOR": "1",
    "TERM": "dumb",
}
# Starts a command, waits until its own standard input is closed, which the system does whenever the
# notebook's kernel ends, however it ends, and then ends the command: politely first.
WATCHMAN = """\
import os, signal, subprocess, sys, threading
command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def follow():
    command.wait()
    os._exit(1)
threading.Thread(target=follow, daemon=True).start()
sys.stdin.read()
command.terminate()
try:
    command.wait(60)
finally:
    os.killpg(0, signal.SIGKILL)
"""
running, deeds = {}, []
began = time.monotonic()


def shown(text):
    """A command's words without the place of this temporary folder."""
    for place in {folder.name, os.path.realpath(folder.name)}:
        text = text.replace(f"{place}/", "").replace(place, ".")
    return text.rstrip()


def run(who, *words, answer="", quiet=False, may_fail=False):
    """Run a medfl command, as somebody would type it, and show what it prints, or return it."""
    words = [str(word) for word in words]
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "medfl", *words],
        env=ENVIRONMENT,
        input=answer,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deeds.append((who, words, begin - began, time.monotonic() - began))
    if not quiet:
        print(f"{who}$ medfl {shown(shlex.join(words))}\n{shown(done.stdout)}\n")
    if done.returncode != 0 and not may_fail:
        raise RuntimeError(
            f"medfl {shlex.join(words)} ended with {done.returncode}:\n{done.stdout}"
        )
    return done.stdout if quiet else None


def start(who, *words):
    """Start a medfl command that goes on in the background, in a session of its own."""
    words = [str(word) for word in words]
    print(f"{who}$ medfl {shown(shlex.join(words))} &")
    with Path(f"{who}.log").open("wb") as log:
        running[who] = subprocess.Popen(
            [sys.executable, "-c", WATCHMAN, sys.executable, "-m", "medfl", *words],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deeds.append((who, words, time.monotonic() - began, None))


def end_all():
    """End what was started, the hospitals before the server."""
    for group in ([who for who in running if who != "coordinator"], ["coordinator"]):
        processes = [running[who] for who in group if who in running]
        for process in processes:
            process.stdin.close()
        for process in processes:
            process.wait()
    running.clear()


def end_after_a_failure(result):
    """A cell that fails leaves nothing behind it."""
    if not result.success:
        end_all()


get_ipython().events.register("post_run_cell", end_after_a_failure)


def wait_until(condition, what, seconds=600):
    """Ask again and again, as a person would."""
    deadline = time.monotonic() + seconds
    while not condition():
        for who, process in running.items():
            if process.poll() is not None:
                raise RuntimeError(f"{who} ended:\n{Path(f'{who}.log').read_text()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"Expected {what} within {seconds} s.")
        time.sleep(1)


def free_port():
    """A port of this machine that nobody listens on, and that no connection is given by chance."""
    for port in random.sample(range(20_000, 30_000), 1000):
        with socket.socket() as door:
            if door.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("Expected a free port.")


# %% [markdown]
# ## 1 · Images at every hospital
#
# `medfl phantom --purpose hospital` writes synthetic hospitals whose site files could be deployed:
# keys and ledger will lie in a folder of its own for each, closed to other accounts.

# %%
hospitals = Path("hospitals")
files = medfl.write_hospitals(
    hospitals,
    patients=size["patients"],
    shape=size["shape"],
    spacing=size["spacing"],
    purpose="hospital",
)
names = [file.stem for file in files]
state = {name: hospitals / "state" / name for name in names}

# "custom" layouts and whole heads are read, too; this one is BraTS 2021's.
cases = [sorted(path for path in (hospitals / name).iterdir() if path.is_dir()) for name in names]
picture, panels = plt.subplots(1, len(names), figsize=(2.1 * len(names), 2.3), layout="constrained")
for panel, name, of_site in zip(panels, names, cases, strict=True):
    image = medfl.read_volume(next(of_site[0].glob("*_flair.nii.gz")))
    slab = image[::-1, ::-1, image.shape[2] // 2].T
    panel.imshow(slab, cmap="gray", interpolation="bicubic")
    panel.set_title(f"{name}: {len(of_site)} patients")
    panel.set_axis_off()
plt.show()

# %% [markdown]
# ## 2 · The coordinator sets up a server
#
# `server init` makes a certificate authority and the server's secrets. `server invite` writes one
# text file for each hospital to mail. It holds the address, the certificate and the versions that
# must match; nothing in it is secret, and it lets nobody in.

# %%
port = free_port()
run("coordinator", "server", "init", "server", "--host", "127.0.0.1", "--port", port)
for name in names:
    run("coordinator", "server", "invite", "server", name, "-o", "mail", quiet=name != names[0])

# %% [markdown]
# ## 3 · A hospital joins
#
# `site init` makes the hospital's keys and a commented site file. The hospital sends `site.pub`
# back, both sides compare the fingerprint by telephone, and the coordinator admits the key.

# %%
first = names[0]
run(first, "site", "init", state[first], "--invite", f"mail/{first}.invite")
for name in names[1:]:
    run(name, "site", "init", state[name], "--invite", f"mail/{name}.invite", quiet=True)

# %% [markdown]
# Next somebody would edit `site.toml`. Our hospitals' files were written with their images; here
# are the lines in which a hospital decides. Whatever a study asks for beyond them is refused, never
# adapted.

# %%
for file, name in zip(files, names, strict=True):
    text = file.read_text(encoding="utf-8")
    if name == names[-1]:
        text = text.replace("epsilon = 8.0 ", "epsilon = 3.0 ")
    (state[name] / "site.toml").write_text(text, encoding="utf-8")
lines = files[0].read_text(encoding="utf-8").splitlines()
begin = lines.index(next(line for line in lines if line.startswith("[privacy]")))
print("\n".join(lines[begin : begin + 10]))

# %%
for name in names:
    run(
        *("coordinator", "server", "admit", "server", state[name] / "site.pub", name),
        quiet=name != first,
    )

# %% [markdown]
# ## 4 · The ledger, once and for good
#
# `ledger init` runs the same checks as `medfl check`, shows what it will fix for as long as these
# patients are used, and asks. From then on the ledger is charged *before* anything is computed, and
# a second one for the same patients is refused, under whatever name.

# %%
run(first, "ledger", "init", state[first] / "site.toml", answer="y\n")
for name in names[1:]:
    run(name, "ledger", "init", state[name] / "site.toml", answer="y\n", quiet=True)

# %% [markdown]
# What happens to who tries again, in the hope of a fresh budget?

# %%
run(first, "ledger", "init", state[first] / "site.toml", answer="y\n", may_fail=True)

# %% [markdown]
# ## 5 · The study, and what it would cost
#
# The coordinator writes a study. Every hospital can ask its own ledger what it would cost, before
# it agrees to anything; no image is read for that.

# %%
STUDY = f"""\
id = "first-round"
seed = 1

[input]
modalities = ["t1c", "t2f"]
regions = ["WT"]
crop_size = [{size["crop"]}, {size["crop"]}, {size["crop"]}]

[network]
name = "SegResNet"
arguments = {{ init_filters = 8, blocks_down = [1, 1], blocks_up = [1] }}

[privacy]
epsilon = 4.0
sampling_prob = 0.3
clip_norm = 1.0

[training]
rounds = {size["rounds"]}
local_steps = 1
optimizer = "sgd"
learning_rate = 0.5

[aggregation]
strategy = "fedadam"
server_learning_rate = 0.01
min_sites = {len(names)}

[evaluation]
every = {size["rounds"]}
pictures = 0
"""
Path("study.toml").write_text(STUDY, encoding="utf-8")
run(first, "plan", "study.toml", state[first] / "site.toml")

# %% [markdown]
# The verdict is honest: so few patients have nothing to win by a private study of a network without
# a public start. It is played to see the machinery.
#
# ## 6 · Server and hospitals start
#
# The server listens, the hospitals connect *outwards*: nothing has to be let in at a hospital.
# `check --server` tries the way to the server, with the certificate of the invitation, and the
# study. On a screen its findings are a table with what to do about each; here they are a line each.

# %%
start("coordinator", "server", "start", "server")
wait_until(lambda: "Serving" in Path("coordinator.log").read_text(), "a server that serves")
server = ("--server", f"127.0.0.1:{port}", "--ca", state[first] / "ca.crt")
told = run(
    *(first, "check", state[first] / "site.toml", "--study", "study.toml", *server, "--json"),
    quiet=True,
)
print(f"\n{first}$ medfl check site.toml --study study.toml --server 127.0.0.1:{port} --ca ca.crt")
for finding in json.loads(told[told.index("[") :]):
    words = f"{finding['severity']}: {shown(finding['name'])}: {finding['value']}"
    print("\n".join(textwrap.wrap(words, 96, subsequent_indent="      ")))

# %%
for name in names:
    address = ("--server", f"127.0.0.1:{port}", "--ca", state[name] / "ca.crt")
    start(name, "site", "start", state[name] / "site.toml", *address)


def connected():
    """How many hospitals the server sees."""
    told = run("coordinator", "server", "status", "server", "--json", quiet=True)
    return [site["name"] for site in json.loads(told)["sites"] if site["connected"]]


wait_until(lambda: len(connected()) == len(names), "all hospitals to connect")
print()
run("coordinator", "server", "status", "server")

# %% [markdown]
# ## 7 · The study runs
#
# In every round each hospital checks the request against its own file, charges its ledger, trains,
# adds its noise, and sends weights. The coordinator sees no more than is printed here.

# %%
run("coordinator", "server", "run", "server", "study.toml", "--out", "run")

# %% [markdown]
# ## 8 · What it cost, provably
#
# The hospital counts its own ledger again, and hands a signed export to an auditor, who needs
# nothing but the public key `site.pub` to check it.

# %%
run(first, "ledger", "verify", state[first] / "site.toml")
run(first, "ledger", "export", state[first] / "site.toml", "-o", "ledger.json")
run("auditor", "ledger", "check-export", "ledger.json", "--key", state[first] / "site.pub")
run(first, "budget", state[first] / "site.toml")

# %% [markdown]
# A ledger whose past somebody has improved does not pass:

# %%
export = json.loads(Path("ledger.json").read_text(encoding="utf-8"))
text = json.dumps(export)
changed = text.replace('"steps": 1', '"steps": 0').replace('\\"steps\\":1', '\\"steps\\":0')
print("changed" if changed != text else "nothing to change", end="\n\n")
Path("improved.json").write_text(changed, encoding="utf-8")
run(
    *("auditor", "ledger", "check-export", "improved.json", "--key", state[first] / "site.pub"),
    may_fail=True,
)

# %% [markdown]
# ## 9 · The report
#
# `medfl report` makes one page for those who decide and those who check. A hospital's patients are
# scored inside the hospital only, so the page has no Dice: it says what was promised, what was
# spent, and who took part.

# %%
run("coordinator", "report", "run")
results = medfl.read_run("run")

COLOURS = ("#0072b2", "#e69f00", "#009e73")
picture, panel = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
for name, count, colour in zip(names, size["patients"], COLOURS, strict=False):
    spent = [0.0, *(record.sites[name].epsilon for record in results.rounds)]
    budget = results.privacy[name].budget
    label = f"{name}: {count} patients, budget {budget:g}"
    panel.plot(range(len(spent)), spent, marker="o", color=colour, label=label)
    panel.axhline(budget, color=colour, linestyle="dashed", linewidth=1)
panel.axhline(results.study.privacy.epsilon, color="#7f7f7f", linestyle="dotted")
panel.text(0, results.study.privacy.epsilon, " the study's target", va="bottom", fontsize=8)
panel.set(xlabel="round", ylabel="ε", title="privacy loss of every hospital's patients")
panel.set_xticks(range(len(results.rounds) + 1))
panel.set_ylim(0, 9)
panel.legend(loc="upper left", bbox_to_anchor=(0, 0.86))
plt.show()

# %% [markdown]
# ## 10 · The end
#
# The hospitals leave, then the server stops. In earnest both go on, and wait for the next study.

# %%
end_all()
ended = time.monotonic() - began
print("still running:", list(running) or "nothing")

PARTS = {
    "set up": ("server init", "server invite", "site init", "server admit", "ledger init"),
    "ask": ("plan", "check", "server status", "budget"),
    "run": ("server run",),
    "prove": ("ledger verify", "ledger export", "ledger check-export", "report"),
}
TINTS = {"set up": "#e69f00", "ask": "#56b4e9", "run": "#0072b2", "prove": "#009e73"}
rows = ["coordinator", *names, "auditor"]
picture, panel = plt.subplots(figsize=(9.6, 3.0), layout="constrained")
for who, words, begin, end in deeds:
    row = rows.index(who)
    if end is None:
        panel.barh(row, ended - begin, left=begin, height=0.8, color="#dddddd", zorder=1)
        continue
    does = [part for part, commands in PARTS.items() if " ".join(words).startswith(commands)]
    panel.barh(row, end - begin, left=begin, height=0.45, color=TINTS[does[0]], zorder=2)
for part, colour in {**TINTS, "connected or serving": "#dddddd"}.items():
    panel.bar(0, 0, color=colour, label=part)
panel.set_yticks(range(len(rows)), rows)
panel.invert_yaxis()
panel.set(xlabel="seconds", title="who did what, and when")
picture.legend(loc="outside lower center", ncols=5, fontsize=8)
plt.show()

# %% [markdown]
# ## At full size
#
# With BraTS, or with patients of your own, nothing changes but the places:
#
# - Every party works on a machine of its own, under an account of its own. The two guides have
#   these commands in this order: `notebooks/guides/hospital.md` and
#   `notebooks/guides/coordinator.md`.
# - `site.toml` names the folder of the images and its layout (for BraTS `layout = "brats2021"`,
#   `label_scheme = "brats"`), the number of training patients, and the budget. `medfl check` reads
#   every image, which takes minutes for hundreds of patients.
# - The witness lies in `/var/lib/medfl-witness`, and site and server are started by systemd or a
#   container (`site_configs/`). The hospital opens one outgoing connection, through a proxy if it
#   must.
# - The study has a public start, a hundred rounds and crops of 64 voxels (see the end of
#   `01_federated_brats`). A round then takes minutes; the messages and the ledgers are the same.
# - The coordinator starts the study with `--detach` and looks with `medfl server status --watch`.
#
# `medfl rehearse` plays the same as one command, on any machine, with `--trust secure` too.
