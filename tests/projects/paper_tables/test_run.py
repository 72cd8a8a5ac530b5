"""The runs of a table, with a fake training: shared runs, finished runs, rejected requests."""

from __future__ import annotations

import json
import runpy
import signal
import sys
from pathlib import Path

import jax
import pytest

from mrcnn_jax.config import Config, to_json
from mrcnn_jax.errors import ConfigError, Interrupted
from mrcnn_jax.training import train as training
from projects.paper_tables import classifier, report, run, small, tables
from projects.paper_tables.run import TableRequest

PRETRAIN = small.pretrain


class FakeTraining:
    """Writes the files of a training, with metrics that depend on the seed. Interrupts the run with index `stop`."""

    def __init__(self, stop: int | None = None):
        self.stop, self.runs = stop, []

    def __call__(self, config: Config, folder: Path) -> None:
        self.runs.append((folder.parent.name, config.train.seed))
        if len(self.runs) - 1 == self.stop:
            checkpoint = Path(folder) / "checkpoints" / "7"
            checkpoint.mkdir(parents=True)
            (checkpoint / "_CHECKPOINT_METADATA").write_text("{}")
            (Path(folder) / "config.json").write_text(to_json(config))
            raise Interrupted(signal.SIGINT, "saved at step 7; the same command continues")
        (folder / "evaluation").mkdir(parents=True)
        value = 0.5 + 0.1 * config.train.seed
        (folder / "evaluation" / "metrics.json").write_text(json.dumps({"segm/AP": value, "bbox/AP": value}))


@pytest.fixture
def request_for(tmp_path):
    def make(table: str, **more) -> TableRequest:
        return TableRequest(tables.table(table), tmp_path / "runs", **more)

    return make


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    """Skip the bar charts, which take longer than the rest and which `test_report.py` tests."""
    monkeypatch.setattr(report, "plot", lambda *_: b"")


@pytest.mark.medium
def test_runs_of_a_table(request_for, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # with its plot
    train = FakeTraining()
    found = run.run(request_for("2b", seeds=(0, 1)), train)
    assert train.runs == [("softmax", 0), ("sigmoid", 0), ("softmax", 1), ("sigmoid", 1)]
    assert {name: [result.seed for result in results] for name, results in found.items()} == {
        "softmax": [0, 1],
        "sigmoid": [0, 1],
    }
    assert (tmp_path / "runs/2b/softmax/seed1/ablation.json").is_file()
    assert "24.8 / 55.0 ± 5.0" in (tmp_path / "runs/2b/table.md").read_text()
    assert (tmp_path / "runs/2b/table.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "table 2b, run 1 of 4: softmax, seed 0\n" in said
    assert "run 4 of 4: sigmoid, seed 1; about 0 seconds left" in said


def test_seeds_have_the_same_data_and_budget(request_for, tmp_path):
    first, second = run.plan(request_for("2c", rows=("roi_pool_max",), seeds=(3, 4)))
    assert first.config.data == second.config.data
    assert first.config.data.root == str(tmp_path / "runs/data/outlines")
    assert (first.config.train.seed, second.config.train.seed) == (3, 4)
    assert run.differing_fields(first.config, second.config) == ["train.seed"]


C4 = {"2a": "r50_c4", "2b": "sigmoid", "2c": "roi_align_average", "agnostic": "class_specific"}
SHARED = [
    ({"2a": "r50_fpn", "2e": "fcn"}, "2a/r50_fpn"),
    ({"2a": "r101_fpn", "3": "mask_r101_fpn"}, "2a/r101_fpn"),
    ({"4": "keypoint_only", "5": "keypoint_only", "6": "roi_align"}, "4/keypoint_only"),
    ({"4": "keypoint_mask", "5": "keypoint_mask"}, "4/keypoint_mask"),
    ({"2d": "roi_align"}, "2d/roi_align"),
]


@pytest.mark.parametrize(
    ("scale", "places", "home"),
    [
        *((scale, *shared) for scale in ("small", "coco") for shared in SHARED),
        ("coco", C4, "2a/r50_c4"),
        ("small", {"2a": "r50_c4", "2c": "roi_align_average"}, "2a/r50_c4"),  # the others compare classes
        ("small", {"2b": "sigmoid", "agnostic": "class_specific"}, "2b/sigmoid"),
    ],
)
def test_rows_with_equal_recipes_share_their_runs(request_for, places, home, scale):
    more = {"data": "COCO", "init": {"": "FILE"}} if scale == "coco" else {}
    jobs = [run.plan(request_for(table, rows=(row,), **more))[0] for table, row in places.items()]
    assert {job.folder.as_posix().split("/runs/")[1] for job in jobs} == {f"{home}/seed0"}
    assert len({job.config for job in jobs}) == 1
    assert jobs[0].config.name == "table" + home.replace("/", "_")


def test_other_rows_have_runs_of_their_own():
    folders = run._run_folders("coco")
    assert len(folders) == 30
    assert len(set(folders.values())) == 30 - (3 + 1 + 2 + 2 + 1)


def test_finished_runs_are_not_repeated(request_for, capsys):
    run.run(request_for("2b"), FakeTraining())
    again = FakeTraining()
    found = run.run(request_for("2b"), again)
    assert not again.runs
    assert found["softmax"][0].metrics["segm/AP"] == 0.5
    assert capsys.readouterr().out.count("Table 2b: ") == 3
    run.run(request_for("agnostic"), again)  # one row shares a finished run of 2b
    assert again.runs == [("class_agnostic", 0)]


def test_interrupted_run_resumes(request_for, tmp_path):
    request = request_for("2b")
    with pytest.raises(Interrupted) as stopped:
        run.run(request, FakeTraining(stop=1))
    assert stopped.value.exit_status == 130
    record = tmp_path / "runs/2b/sigmoid/seed0/ablation.json"
    content = json.loads(record.read_text())
    assert content["metrics"] is None
    record.write_text(json.dumps({**content, "seconds": 1000.0}))
    again = FakeTraining()
    found = run.run(request, again)
    assert again.runs == [("sigmoid", 0)]
    assert found["sigmoid"][0].seconds >= 1000


def test_run_without_a_checkpoint_restarts_with_any_settings(request_for):
    def train(config, folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(request_for("2b"), train)
    again = FakeTraining()
    found = run.run(request_for("2b", overrides=("train.steps=70",)), again)
    assert len(again.runs) == 2
    assert found["softmax"][0].seconds < 60


@pytest.mark.parametrize("stop", [None, 0])
def test_runs_of_another_recipe_are_rejected(request_for, stop):
    if stop is None:
        run.run(request_for("2b"), FakeTraining())
    else:
        with pytest.raises(Interrupted):
            run.run(request_for("2b"), FakeTraining(stop))
    again = FakeTraining()
    with pytest.raises(ConfigError, match=r"softmax/seed0 .* differs in optimizer\.learning_rate, train\.steps; "):
        run.run(request_for("2b", overrides=("train.steps=70", "optimizer.learning_rate=0.5")), again)
    assert not again.runs
    harmless = ("train.log_every=3", "data.workers=2", "eval.overlays=0")
    run.run(request_for("2b", overrides=harmless), again)
    assert len(again.runs) == (0 if stop is None else 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"overrides": ("model.roi.pooling=pool",)}, r"model\.roi\.pooling differs between rows of table 2c; .*--rows"),
        ({"overrides": ("train.seed=3",)}, "use --seeds"),
        ({"overrides": ("data.root=x",)}, "use --data"),
        ({"overrides": ("train.stepz=3",)}, "did you mean 'steps'"),
        ({"rows": ("roi_pool",)}, "table 2c has no row 'roi_pool'; it has roi_pool_max, "),
        ({"scale": "coco"}, "--scale=coco needs --data=DIR"),
        ({"data": "COCO"}, r"table 2c, RoIPool, max: .*init"),
        ({"data": "COCO", "init": {"R101": "FILE"}}, "init is empty"),
    ],
)
def test_invalid_requests_are_rejected_before_training(request_for, more, message):
    train = FakeTraining()
    with pytest.raises(ConfigError, match=message):
        run.run(request_for("2c", **more), train)
    assert not train.runs


def test_coco_folder_at_both_scales(request_for):
    weights = {"": "all.pkl", "R101": "deep.pkl"}
    configs = {job.row.name: job.config for job in run.plan(request_for("2a", data="COCO", init=weights))}
    assert {name: config.init for name, config in configs.items()} == {
        **dict.fromkeys(("r50_c4", "r50_fpn", "x101_fpn"), "all.pkl"),
        **dict.fromkeys(("r101_c4", "r101_fpn"), "deep.pkl"),
    }
    assert {config.data.root for config in configs.values()} == {"COCO"}
    [job] = run.plan(request_for("5", data="COCO", scale="small", rows=("faster",)))
    assert job.config.model.backbone.name == "resnet18"
    assert job.config.data.shapes is None
    assert job.config.data.train.annotations == "annotations/person_keypoints_train2017.json"


def test_rows_without_a_small_recipe_are_skipped(request_for, capsys):
    train = FakeTraining()
    found = run.run(request_for("3"), train)
    assert list(found) == ["faster_r101_fpn", "mask_r101_fpn"]
    assert "Mask R-CNN, ResNeXt-101-FPN has no small recipe and is skipped" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="has no small recipe"):
        run.plan(request_for("3", rows=("mask_x101_fpn",)))


def test_shards_split_the_runs(request_for):
    first, second = FakeTraining(), FakeTraining()
    run.run(request_for("2c", shard=(1, 2)), first)
    assert len(first.runs) == 3
    found = run.run(request_for("2c", shard=(2, 2)), second)
    assert len(second.runs) == 2
    assert not set(first.runs) & set(second.runs)
    assert all(len(results) == 1 for results in found.values())


def test_table_has_all_results_with_these_settings(request_for, tmp_path):
    """Rows and seeds of earlier commands, but no run with other settings."""
    train = FakeTraining()
    run.run(request_for("2b", rows=("softmax",), seeds=(0,)), train)
    found = run.run(request_for("2b", rows=("sigmoid",), seeds=(1,)), train)
    assert {name: [result.seed for result in results] for name, results in found.items()} == {
        "softmax": [0],
        "sigmoid": [1],
    }
    other = request_for("2b", rows=("softmax",), seeds=(2,), overrides=("train.steps=70",))
    assert {name: len(results) for name, results in run.run(other, train).items()} == {"softmax": 1, "sigmoid": 0}


def test_rows_with_weights_given_one_by_one(request_for):
    run.run(request_for("2a", data="COCO", init={"R50": "a"}, rows=("r50_c4",)), FakeTraining())
    request = request_for("2a", data="COCO", init={"R101": "b"}, rows=("r101_c4",))
    found = run.run(request, FakeTraining())
    assert {name for name, results in found.items() if results} == {"r50_c4", "r101_c4"}


def test_override_of_a_head_that_other_rows_lack(request_for):
    override = ("model.mask.channels=8",)
    found = run.run(request_for("3", rows=("mask_r101_fpn",), overrides=override), FakeTraining())
    assert {name: len(results) for name, results in found.items()} == {"faster_r101_fpn": 0, "mask_r101_fpn": 1}
    with pytest.raises(ConfigError, match="'mask' is None"):
        run.plan(request_for("3", overrides=override))


def test_only_report_trains_nothing(request_for, tmp_path):
    train = FakeTraining()
    assert run.run(request_for("2b"), train, only_report=True) == {"softmax": [], "sigmoid": []}
    assert not train.runs
    assert "| softmax | 24.8 / - |" in (tmp_path / "runs/2b/table.md").read_text()
    assert not (tmp_path / "runs/2b/table.png").exists()


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run the command in an empty folder; its exit status."""
    assert jax.config.jax_compilation_cache_dir is not None  # so that the command leaves the tests' cache alone
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(small, "pretrain", lambda file, config, root: pretrained.append(file.as_posix()))
    pretrained: list[str] = []

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["paper_tables", *arguments])
        with pytest.raises(SystemExit) as exit:
            runpy.run_module("projects.paper_tables", run_name="__main__")
        return exit.value.code

    call.pretrained = pretrained
    return call


@pytest.mark.medium
def test_command_trains_all_rows(command, monkeypatch, tmp_path):
    train = FakeTraining()
    monkeypatch.setattr(training, "train", train)
    assert command("agnostic", "--seeds=0,1", "--config.train.steps=30") == 0
    assert [seed for _, seed in train.runs] == [0, 0, 1, 1]
    assert set(command.pretrained) == {"runs/ablations/classifiers/resnet18.npz"}
    record = json.loads((tmp_path / "runs/ablations/agnostic/class_agnostic/seed1/ablation.json").read_text())
    assert record["config"]["train"]["steps"] == 30
    assert command("agnostic", "--only-report", "--config.train.steps=30") == 0
    assert len(train.runs) == 4
    command.pretrained.clear()
    assert command("agnostic", "--seeds=0,1", "--config.train.steps=30") == 0  # all runs are finished
    assert command("agnostic", "--seeds=2", "--init=FILE", "--config.train.steps=30") == 0  # other initial weights
    assert not command.pretrained


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["2f"], "there is no table '2f'; there are 2a, 2b"),
        (["2c", "--seeds=a"], "--seeds=a: give whole numbers"),
        (["2c", "--shard=3/2"], "--shard=3/2: give I/N"),
        (["2c", "--rows=x"], "table 2c has no row 'x'"),
        (["2c", "--config.train.steps=many"], "train.steps: expected int"),
        (["2c", "--step=3"], "unknown argument --step=3"),
    ],
)
def test_invalid_arguments_are_named(command, capsys, arguments, said):
    assert command(*arguments) == 2
    assert said in capsys.readouterr().err


def test_exit_status_after_ctrl_c(command, monkeypatch, capsys):
    monkeypatch.setattr(training, "train", FakeTraining(stop=1))
    assert command("2b") == 130
    assert "saved at step 7; the same command continues" in capsys.readouterr().err


@pytest.mark.slow
def test_two_real_steps(command, tmp_path, monkeypatch):
    """Pretraining, then a row with its weights."""
    monkeypatch.setattr(small, "pretrain", PRETRAIN)
    monkeypatch.setattr(small, "TRAIN_IMAGES", 10)
    monkeypatch.setattr(small, "CLASSIFIER_STEPS", 2)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 8)
    tiny = {
        "train.steps": 2,
        "train.batch_size": 2,
        "eval.batch_size": 2,
        "optimizer.warmup_steps": 1,
        "model.backbone.width": 8,
        "data.cache_dir": tmp_path / "cache",
        "data.shapes.train_images": 4,
        "data.shapes.eval_images": 2,
        "data.shapes.image_size": 64,
        "data.buckets": "((64, 64),)",
    }
    overrides = [f"--config.{name}={value}" for name, value in tiny.items()]
    assert command("2c", "--rows=roi_align_average", *overrides) == 0
    record = json.loads((tmp_path / "runs/ablations/2a/r50_c4/seed0/ablation.json").read_text())
    assert {"bbox/AP", "segm/AP75"} <= record["metrics"].keys()
    assert record["seconds"] > 0
