"""ViT, DeiT, DINOv2, and the images of CLIP and SigLIP."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import Size, sizes

VIT = "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size"
CLASSES = 1000  # of ImageNet
VISION: dict[str, Size] = {
    **sizes(
        "vit",
        VIT,
        """
        vit-base-16 86567656 768 3072 12 12 224 16
        vit-base-32 88224232 768 3072 12 12 224 32
        vit-large-16 304326632 1024 4096 24 16 224 16
        vit-huge-14 632045800 1280 5120 32 16 224 14
        """,
        {"id2label": {str(index): str(index) for index in range(CLASSES)}},
    ),
    **sizes(
        "deit",
        VIT,
        """
        deit-tiny-distilled-16 5910800 192 768 12 3 224 16
        deit-small-distilled-16 22436432 384 1536 12 6 224 16
        deit-base-distilled-16 87338192 768 3072 12 12 224 16
        """,
        {
            "id2label": {str(index): str(index) for index in range(CLASSES)},
            "architectures": ["DeiTForImageClassificationWithTeacher"],
        },
    ),
    **sizes(
        "siglip_vision_model",
        VIT,
        """
        siglip-base-16-224 - 768 3072 12 12 224 16
        siglip-large-16-256 - 1024 4096 24 16 256 16
        """,
        {"vision_use_head": False},
    ),
    **sizes(
        "dinov2",
        "hidden_size num_hidden_layers num_attention_heads image_size patch_size",
        """
        dinov2-small - 384 12 6 518 14
        dinov2-base - 768 12 12 518 14
        dinov2-large - 1024 24 16 518 14
        """,
        {},
    ),
    **sizes(
        "clip_vision_model",
        VIT,
        """
        clip-vit-base-32 87456000 768 3072 12 12 224 32
        clip-vit-base-16 85799424 768 3072 12 12 224 16
        clip-vit-large-14 303179776 1024 4096 24 16 224 14
        """,
        {},
    ),
}
