"""Reference implementations, one file per paper. Naming them imports nothing."""

MODELS: dict[str, str] = {
    "resnet": "dynbench.models.resnet:resnet",
    "skipnet": "dynbench.models.skipnet:skipnet",
    "idk_cascade": "dynbench.models.idk:idk_cascade",
    "moe_gpt": "dynbench.models.moe_gpt:moe_gpt",
    "dense_gpt": "dynbench.models.moe_gpt:dense_gpt",
}
