"""DINOv2's small models: ViTs that a frozen ViT-g teaches (Oquab et al. 2023, arXiv 2304.07193, section 5).

    python -m big_ssl.main --config=configs/dinov2_distill.py:vits14 --workdir=gs://bucket/dinov2_vits14 \
        --config.init_from.path=gs://bucket/dinov2_vitg14 \
        --config.streams.images.data.source.data_dir=gs://bucket/tensorflow_datasets

Models, the students: `vits14` (the default), `vitb14` and `vitl14`. Presets: `demo` trains a small student,
from the run of configs/dinov2.py:vitg14,demo (--config.init_from.path); `tiny` is the demo in seconds, for
tests, with an untrained teacher; `rehearsal` is for launch/rehearse.sh.

The teacher is a frozen encoder of this config. init_from fills it and its heads with the EMA of a run of
configs/dinov2.py:vitg14. The EMA of the student (`ema`) does not teach: it is the result of the run.
There are no masks and no stochastic depth, and iBOT's loss is on all patches of the global crops.

No code was published for this. The batch of 2,048 and the learning rate of 1e-3 are reported for these runs;
other values are those of the teacher's training (configs/dinov2.py). `# open` marks our own.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink

# With plain MLPs, as released.
MODELS = {
    "vits14": dict(width=384, depth=12, heads=6, feed_forward="mlp"),
    "vitb14": dict(width=768, depth=12, heads=12, feed_forward="mlp"),
    "vitl14": dict(width=1024, depth=24, heads=16, feed_forward="mlp"),
}
_TEACHER = dict(width=1536, depth=40, heads=24, feed_forward="swiglu")
_EPOCH = 1_250  # steps, as the files of the teacher count them


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets = {"": full, "demo": demo, "tiny": tiny, "rehearsal": lambda model: shrink(full(model))}
    return recipe.choose("dinov2_distill", arg, presets, MODELS)


def full(model: str) -> dict:
    """Two global and eight local crops of each image; the teacher sees the global ones."""
    pixels = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return dict(
        name=f"dinov2_distill_{model}",
        seed=0,
        total_steps=625_000,  # open: as many as the teacher's
        dtype="bfloat16",
        streams=dict(images=dict(batch_size=2_048, data=_data(pixels), objectives=_objectives())),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        eval_transform=dict(size=224, resize=256, resize_mode="crop", filter="bicubic", **pixels),
        encoders=dict(image=_encoder(MODELS[model]), teacher=_encoder(_TEACHER)),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=dict(kind="cosine", peak=0.04, warmup_steps=0, start=0.0, final=0.2),
            # Tokens, position tables and the lengths of prototypes are decayed, as in the teacher's training.
            weight_decay_exclude=("_norm/", "bias$", "_scale$"),
            trust_ratio_exclude=(),
            clip_norm=3.0,
            clip_scope="part",
        ),
        learning_rate=dict(kind="cosine", peak=1e-3, warmup_steps=100_000, start=0.0, final=1e-6),
        lr_multipliers=(
            ("/teacher", 0.0),
            ("/prototype", dict(kind="steps", values=((0, 0.0), (_EPOCH, 1.0)))),
            ("encoders/", dict(kind="layer_decay", decay=1.0, patch_embedding=0.2)),
        ),
        ema=dict(kind="cosine", peak=0.994, warmup_steps=0, start=0.0, final=1.0),
        # The encoder and the heads of the run become the teacher's; the student starts from scratch.
        init_from=dict(
            path="",
            exclude=("encoders/image/", "/projection/"),
            remap=(("encoders/image/", "encoders/teacher/"), ("/projection/", "/teacher_projection/")),
        ),
        # The options below do not change what is computed.
        mesh=dict(data=-1, fsdp=8, tensor=1),
        mesh_rules=(),
        sharding=(),
        grad_accum=1,
        remat="full",
        requires=dict(weights=True, preset_here="demo"),
        profile=0,
        log_every=100,
        eval_every=12_500,
        checkpoint=dict(every=2_500, keep=3, best=""),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=dict(),
        predictors=dict(),
    )


def _encoder(size):
    return dict(
        kind="vit",
        patch=14,
        **size,
        image_size=224,
        epsilon=1e-6,
        pooling="cls",
        kernel_init="dinov2",
        mask_token=True,
        position_resize="dinov2",
        layer_scale=1e-5,
        drop_path=0.0,
        drop_path_mode="subset",
        drop_path_groups=1,
        registers=0,
        rope_base=placeholder(float),
        rope_rescale=1.0,
        scan=True,
    )


def _data(pixels):
    colour = dict(**pixels, flip=True, jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, grayscale_prob=0.2)
    return dict(
        source=dict(
            kind="tfds",
            name="imagenet21k",
            split="train",
            data_dir="",
            image_key="image",
            text_keys=(),
        ),
        fields=dict(
            global_crops=dict(
                kind="image",
                crop=dict(kind="random_resized_crop", size=224, scale=(0.32, 1.0), count=2),
                **colour,
                blur_prob=(1.0, 0.1),
                solarize_prob=(0.0, 0.2),
            ),
            local_crops=dict(
                kind="image",
                crop=dict(kind="random_resized_crop", size=98, scale=(0.05, 0.32), count=8),
                **colour,
                blur_prob=(0.5,) * 8,
                solarize_prob=(),
            ),
        ),
        cache_mib=0,
        threads=64,
    )


def _objectives():
    """chunk: the number of examples whose logits are in memory at a time; results do not depend on it."""
    head = dict(prototypes=131_072, hidden=2_048, bottleneck=256, layers=3, norm_last_layer=False)
    temperature = dict(kind="linear", start=0.04, peak=0.07, warmup_steps=30 * _EPOCH, final=0.07)
    return dict(
        dino=dict(
            kind="dino",
            weight=1.0,
            teacher="teacher",
            masked=False,
            head=dict(head, bottleneck=384),
            teacher_temperature=dict(temperature),
            centering=dict(kind="sinkhorn", iterations=3),
            chunk=2,
        ),
        ibot=dict(
            kind="ibot",
            weight=1.0,
            teacher="teacher",
            masked=False,
            head=head,
            teacher_temperature=dict(temperature),
            centering=dict(kind="sinkhorn", iterations=3),
            center_over="masked",
            chunk=4,
        ),
        # open: 64 are the examples of a device, if 32 share the batch.
        koleo=dict(kind="koleo", weight=0.1, masked=False, koleo_group=64, crops=2),
    )


def demo(model: str) -> dict:
    """A thinner student of the model of configs/dinov2.py:vitg14,demo, on the same emoji drawings."""
    config = full(model)
    config.update(name=f"dinov2_distill_{model}_demo", **emoji.images_run())
    config.update(lr_multipliers=(("/teacher", 0.0),))
    config["requires"].update(weights=True)
    config["learning_rate"].update(peak=1e-3, warmup_steps=40, final=1e-5)
    config["optimizer"].update(b2=0.98)
    images = config["streams"]["images"]
    images.update(
        batch_size=128,
        data=emoji.images(images["data"]["fields"], size=48, local_size=24, local_count=4),
    )
    fields = images["data"]["fields"]
    config["eval_transform"].update(size=48, resize=48)
    for name in ("dino", "ibot"):
        objective = images["objectives"][name]
        objective.update(teacher_temperature=0.04)
        objective["head"].update(prototypes=4_096, hidden=512, bottleneck=128, norm_last_layer=True)
    images["objectives"]["ibot"].update(chunk=128)
    images["objectives"]["koleo"].update(koleo_group=0)
    # Blur would erase such small crops, and colour is half of the information in a drawing.
    for name in ("global_crops", "local_crops"):
        fields[name].update(jitter=(), grayscale_prob=0.0, blur_prob=(), solarize_prob=())
    small = dict(patch=12, depth=4, image_size=48, layer_scale=0.1, scan=False, feed_forward="swiglu")
    config["encoders"]["image"].update(small, width=64, heads=2)
    config["encoders"]["teacher"].update(small, width=128, heads=4)
    return config


def tiny(model: str) -> dict:
    """The demo with narrower encoders and small batches, in seconds; its teacher is untrained."""
    config = demo(model)
    config.update(name=f"dinov2_distill_{model}_tiny", **emoji.few_images_run())
    config.update(lr_multipliers=(("/teacher", 0.0),), init_from=dict(path="", exclude=(), remap=()))
    config["learning_rate"].update(peak=2e-3, warmup_steps=2)
    images = config["streams"]["images"]
    images.update(
        batch_size=16,
        data=emoji.few_images(images["data"]["fields"], size=32, local_size=16, local_count=2),
    )
    config["eval_transform"].update(size=32, resize=32)
    for name in ("dino", "ibot"):
        images["objectives"][name]["head"].update(prototypes=64, hidden=32, bottleneck=16)
    small = dict(patch=8, depth=1, heads=2, image_size=32, layer_scale=1e-5)
    config["encoders"]["image"].update(small, width=16)
    config["encoders"]["teacher"].update(small, width=32)
    return config
