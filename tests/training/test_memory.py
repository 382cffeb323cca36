"""The estimated memory of a step against the TPU compiler's, and the errors and warnings of recipes."""

import importlib

import pytest

from big_ssl.parallel import hardware, notices
from big_ssl.training import memory, requirements
from big_ssl.training.requirements import Machine, RequirementsError, check_requirements

GIB = 2**30
# docs/plan.md and docs/performance.md: recipe, change, devices, their kind, GiB a device as compiled.
PLANNED = [
    pytest.param("align_l2", "", 256, "TPU v5p", 10.73, marks=pytest.mark.slow),
    pytest.param("align_l2", "", 256, "TPU v5 lite", 10.30, marks=pytest.mark.slow),
    pytest.param("align_l2", "streams.pairs.batch_size=32768", 256, "TPU v5p", 16.45, marks=pytest.mark.slow),
    pytest.param("align_l2", "", 512, "TPU v4", 6.94, marks=pytest.mark.slow),
    pytest.param("align_l2", "streams.pairs.batch_size=32768", 512, "TPU v4", 11.02, marks=pytest.mark.slow),
    pytest.param("align_l2", "demo", 4, "TPU v5 lite", 0.109, marks=pytest.mark.slow),
    pytest.param("dinov2", "", 256, "TPU v5 lite", 13.88),
    pytest.param("dinov2", "", 256, "TPU v5p", 14.11, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.fixture
def warnings(monkeypatch):
    """The warnings of a test."""
    logged: list[str] = []
    monkeypatch.setattr(requirements, "warn_once", logged.append)
    monkeypatch.setattr(notices.logging, "warning", lambda *_: None)
    return logged


@pytest.fixture
def config_of(tmp_path):
    """config_of(recipe, arg="") -> its config, with the dataset and the vocabulary that it names in place."""

    def build(recipe, arg=""):
        config = importlib.import_module(f"configs.{recipe}").get_config(arg).to_dict()
        for stream in config["streams"].values():
            source = stream["data"]["source"]
            if source["kind"] == "tfds":
                (tmp_path / source["name"]).mkdir(exist_ok=True)
                source["data_dir"] = str(tmp_path)
        config["tokenizer"]["vocabulary"] = config["tokenizer"]["vocabulary"] or "a file"
        return config

    return build


@pytest.mark.parametrize(("recipe", "change", "devices", "kind", "planned"), PLANNED)
def test_a_recipe_runs_on_devices_that_the_plan_accepts(
    recipe, change, devices, kind, planned, config_of, warnings
):
    config = config_of(recipe, change)
    check_requirements(config, f"configs/{recipe}.py", Machine(devices, kind, hardware.CHIPS[kind].hbm))
    assert not [warning for warning in warnings if "needs" in warning]
    assert planned / 2.1 < memory.count(config, devices, kind).total / GIB < planned * 1.5


def test_a_laptop_gets_one_error_message(config_of, warnings):
    config = config_of("align_l2")
    config["streams"]["pairs"]["data"]["source"]["data_dir"] = ""
    with pytest.raises(RequirementsError) as caught:
        check_requirements(config, "configs/align_l2.py", Machine(1, "cpu", 16 * GIB))
    first, needed, dataset, last = str(caught.value).splitlines()
    assert first == "align_l2 cannot run on this machine. It needs"
    assert needed.startswith(
        "  - about 1.3e+03 GiB on each device for the state and a step, of 1 x cpu of 16 GiB;"
    )
    assert "'image_text_pairs'" in dataset
    assert last == "Runs here: --config=configs/align_l2.py:demo"


def test_a_state_that_cannot_fit_is_an_error(config_of, warnings):
    with pytest.raises(
        RequirementsError, match=r"  - 1\.69 GiB for the state on each device, of 8 x cpu of 2 GiB"
    ):
        check_requirements(config_of("clip"), "configs/clip.py", Machine(8, "cpu", 2 * GIB))
    assert not warnings


def test_devices_that_are_likely_too_small_give_a_warning(config_of, warnings):
    config = config_of("clip")
    check_requirements(config, "configs/clip.py", Machine(8, "NVIDIA A100-SXM4-40GB", 10 * GIB))
    (warning,) = warnings
    assert warning.startswith(
        "clip_vitb32 needs about 16.5 GiB on each device for the state and a step, of 8 x NVI"
    )
    assert warning.endswith("more devices, grad_accum or a smaller batch_size need less; going on")


def test_microbatches_and_fsdp_need_less_memory(config_of):
    config = config_of("clip")
    whole = memory.count(config, 8, "cpu")
    config["mesh"].update(fsdp=8)
    split = memory.count(config | dict(grad_accum=4), 8, "cpu")
    assert split.activations == whole.activations // 4
    assert split.state < whole.state / 7
    assert split.batch == whole.batch
