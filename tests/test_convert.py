"""The command: its files, its messages and its exit codes."""

import functools
import json

import numpy as np
import pytest

import big_ssl
from big_ssl import convert, inference
from big_ssl.data import clip_bpe
from big_ssl.data.preprocessing import resize
from big_ssl.data.tokenizers import SPECIAL
from big_ssl.models import text_transformer, vit
from big_ssl.training import evaluation, loop
from big_ssl.weights.tensor_files import read_tensors
from configs.align_l2 import get_config
from tests import commands
from tests.parity import goldens

run = functools.partial(commands.run, "big_ssl.convert")


def test_the_command_converts_an_openai_resnet(tmp_path):
    path = goldens.write_checkpoint("clip_resnet", tmp_path / "in")
    done = run(
        "--from=openai_clip", f"--input={path}", f"--output={tmp_path / 'out'}", "--model.text_num_heads=2"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"0.1 M parameters in {tmp_path / 'out'}\n"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["encoders"]["image"]["blocks"] == [2, 1, 2, 1]
    assert config["encoders"]["text"]["heads"] == 2
    written = read_tensors(tmp_path / "out" / "model.safetensors")
    expected = goldens.golden("clip_resnet")[0]["visual.layer3.1.bn2.running_var"].astype(np.float32)
    np.testing.assert_array_equal(written["encoders/image/batch_stats/stage2_block1/conv2_bn/var"], expected)


def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    path = goldens.write_checkpoint("hf_clip", tmp_path / "in", logit_scale=None)
    done = run("--from=hf_clip", f"--input={path}", f"--output={tmp_path / 'out'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{path}/model.safetensors, as hf_clip: logit_scale is missing\n"
    assert not (tmp_path / "out").exists()


def test_the_vocabulary_beside_the_weights_is_copied(tmp_path):
    path = goldens.write_checkpoint("hf_clip", tmp_path / "in")
    (path / "merges.txt").write_text("#version: 0.2\n")
    (path / "vocab.json").write_text("{}")
    convert.convert("hf_clip", path, "big_ssl", tmp_path / "out", {})
    assert (tmp_path / "out" / "merges.txt").read_text() == "#version: 0.2\n"
    assert (tmp_path / "out" / "vocab.json").read_text() == "{}"


def test_an_export_to_transformers_has_its_tokenizers_files(tmp_path):
    path = goldens.write_checkpoint("hf_clip", tmp_path / "in")
    (path / "merges.txt").write_bytes(clip_bpe.train(["a cat", "a car"], 516))
    convert.convert("hf_clip", path, "hf_clip", tmp_path / "out", {})
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (settings["tokenizer_class"], settings["model_max_length"]) == ("CLIPTokenizer", 9)
    expected = clip_bpe.read_vocabulary(str(path / "merges.txt"))
    assert clip_bpe.read_vocabulary(str(tmp_path / "out" / "merges.txt")) == expected
    convert.convert("hf_clip", path / "model.safetensors", "hf_clip", tmp_path / "of_file", {})
    assert (tmp_path / "of_file" / "vocab.json").is_file()
    assert json.loads((tmp_path / "out" / "vocab.json").read_text()) == expected[0]


def test_an_export_of_align_is_read_back(tmp_path):
    path = goldens.write_checkpoint("hf_align", tmp_path / "in")
    words = [*SPECIAL, *map(str, range(45))]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    convert.convert("hf_align", path, "hf_align", tmp_path / "out", {})
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["mask_token"] == "[MASK]"
    expected = inference.read(path)[0]["tokenizer"]
    assert inference.read(tmp_path / "out")[0]["tokenizer"]["length"] == expected["length"] == 12


@pytest.mark.parametrize("inside", ["", "model.safetensors"])
def test_an_output_over_the_input_is_refused(inside, tmp_path):
    path = goldens.write_checkpoint("hf_clip", tmp_path / "in")
    (tmp_path / "link").symlink_to(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(ValueError, match=r"--output is .*/link, where --input is"):
        convert.convert("hf_clip", path / inside, "big_ssl", tmp_path / "link", {})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_an_image_only_model_has_no_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    assert inference.vocabulary_beside(dict(tokenizer=None), tmp_path) is None
    actual = inference.vocabulary_beside(dict(tokenizer=dict(kind="wordpiece")), tmp_path)
    assert actual == tmp_path / "vocab.txt"


def clip_config():
    """ALIGN's smallest preset with CLIP's towers and scanned layers; its texts end with [SEP]."""
    config = get_config("tiny").to_dict()
    config.update(total_steps=2, evals={}, ema=0.5)
    config["learning_rate"].update(warmup_steps=1)
    config["checkpoint"].update(every=2, best="")
    shape = dict(width=16, depth=2, heads=2, scan=True)
    config["encoders"] = dict(
        image=dict(kind="vit", patch=8, image_size=16, **shape, **vit.CLIP),
        text=dict(kind="text_transformer", eot_id=3, **shape, **text_transformer.CLIP),
    )
    config["streams"]["pairs"]["objectives"]["contrastive"].update(embed_dim=8, image_projection=True)
    return config


@pytest.mark.slow
def test_a_trained_run_is_loaded_and_exported(tmp_path):
    """Exports on one device the variables that a run on eight evaluates; the workdir is unchanged."""
    result = loop.train(clip_config(), tmp_path / "run")
    before = sorted((tmp_path / "run").rglob("*"))
    model = big_ssl.load(tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before
    trained = result.state.ema["params"]["encoders"]["text"]
    actual = model.variables["params"]["encoders"]["text"]
    np.testing.assert_array_equal(actual["token"]["embedding"], trained["token"]["embedding"])
    kernel = trained["layer_stack"]["mlp_in"]["kernel"]
    np.testing.assert_array_equal(actual["layer1"]["mlp_in"]["kernel"], kernel[1])
    images, texts = np.random.default_rng(0).integers(0, 256, (2, 20, 16, 3), np.uint8), ["red heart", "cat"]
    predictor = evaluation.predictor(clip_config(), result.setup).for_evaluation(result.state.ema)
    expected = predictor.encode_image(resize(images, 16, "crop 18"), resize=False)
    # Scanned layers sum in another order.
    np.testing.assert_allclose(model.encode_image(images), expected, rtol=1e-4, atol=1e-5)
    for kind in ("big_ssl", "hf_clip"):
        convert.convert("big_ssl", tmp_path / "run", kind, tmp_path / kind, {})
        convert.convert(kind, tmp_path / kind, "big_ssl", tmp_path / "again", {})
        again = big_ssl.load(tmp_path / "again")
        np.testing.assert_array_equal(again.encode_image(images), model.encode_image(images))
        ids = model.tokenizer(texts)["ids"]
        np.testing.assert_array_equal(again.encode_text(ids), model.encode_text(texts))
