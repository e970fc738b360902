"""List the blocks that are known and cannot be patched, by the reason, which follows the block's name in an error."""

from __future__ import annotations

from .libraries import transformers_path

FUSED = "its attention and MLP share one residual, so there is no place between them to merge"
WINDOWED = "its attention runs in windows of a full grid, which merged tokens no longer form"
HIERARCHICAL = "it pools a full grid from stage to stage, which merged tokens no longer form"
GRIDDED = (
    "its tokens stay a grid [B, H, W, D], for attention in windows or with relative positions along the grid's sides, "
    "which merged tokens no longer form"
)
POOLED = "its keys or tokens are pooled on the grid, which merged tokens no longer form"
REDUCED = "its attention reduces the keys over a full grid, which merged tokens no longer form"
SAMPLED = "its attention samples maps of features between their pixels, which merged tokens no longer form"
PACKED = "the patches of all images lie end to end in one sequence (cu_seqlens), which is no batch of one grid"
FRAMES = "its tokens are a grid of time, height and width, where ALGM merges within one of height and width"
MAPPED = "it convolves and pools maps [B, D, H, W] beside its attention, which merged tokens no longer form"
PADDED = "the patches of an image of any size are padded to one number of them, which is no batch of one grid"
CHOSEN = "it takes a choice of the patches, drawn anew for each image and padded, which has no grid"
TEXTED = "words and patches share its sequence, with biases of their places on the page, and no grid but of the patches"
IN_TURN = "the frames of a video go through its last blocks in turn, each with queries of the frame before"
NEIGHBOURED = "it weighs the neighbours of each place of a full grid, which merged tokens no longer form"
PLACED = "its attention holds biases for the pairs of places of a full grid, which merged tokens no longer form"
MIXED = "its attention mixes the heads' logits before softmax, where the weights of merged keys would be mixed too"
NESTED = "the pixels of each patch are tokens of their own beside it, which merged patches no longer have in common"
PATCHES_NOT_LAST = "its detection tokens stand after the patches, which ALGM takes for the last tokens"
CLASS_LAST = "its class token stands after the patches, which ALGM takes for the last tokens"
GROUPED = "its group tokens stand after the patches, and each stage leaves them alone of the grid"
TILED = "the tiles of an image lie end to end in one sequence, with class tokens and padding between them"
MESSAGED = "a message token of each frame, from all frames of a video, joins the patches in its attention alone"
CONVOLVED = "some of its blocks convolve over the sequence of the patches, whose neighbours merged tokens no longer are"
BATCH_NOT_FIRST = "the batch is not the first dimension of the tokens (batch_first)"
SCRIPTED = (
    "torch.jit.script or torch.jit.trace has compiled it, and left nothing to patch. Script parts of blocks (norms, "
    "attention, MLP), but no block and no patch embedding; or none, and call torch.compile or torch.export after "
    "apply_algm"
)

TIMM = "timm.models"
MMSEG = "mmseg.models.backbones"
EVA01 = "mmseg_custom.models.backbones"

# By reason: the paths of the classes whose forward is refused. Subclasses with a forward of their own need a line too.
REFUSED: dict[str, tuple[str, ...]] = {
    FUSED: (
        f"{TIMM}.vision_transformer.ParallelScalingBlock",
        f"{TIMM}.vision_transformer.DiffParallelScalingBlock",
    ),
    WINDOWED: (
        f"{TIMM}.swin_transformer.SwinTransformerBlock",
        f"{TIMM}.swin_transformer_v2.SwinTransformerV2Block",
        f"{TIMM}.swin_transformer_v2_cr.SwinTransformerV2CrBlock",
        f"{TIMM}.vision_transformer_sam.Block",
        f"{TIMM}.davit.SpatialBlock",
        f"{TIMM}.gcvit.GlobalContextVitBlock",
        f"{TIMM}.maxxvit.MaxxVitBlock",
        f"{TIMM}.maxxvit.ParallelMaxxVitBlock",
        f"{TIMM}.nest.TransformerLayer",
        transformers_path("swin.SwinLayer"),
        transformers_path("swinv2.Swinv2Layer"),
        transformers_path("maskformer.MaskFormerSwinLayer"),
        transformers_path("donut.DonutSwinLayer"),
        transformers_path("swin2sr.Swin2SRLayer"),
        transformers_path("hiera.HieraLayer"),
        transformers_path("dinat.DinatLayer"),
        transformers_path("sam2.Sam2MultiScaleBlock"),
        transformers_path("sam3.Sam3ViTLayer"),
        transformers_path("vitdet.VitDetLayer"),
        transformers_path("lw_detr.LwDetrViTLayer"),
        transformers_path("rf_detr.RfDetrDinov2Layer"),
        transformers_path("florence2.Florence2VisionBlock"),
        f"{MMSEG}.swin.SwinBlock",
        f"{MMSEG}.twins.LSAEncoderLayer",
        f"{EVA01}.base.beit_win.Block",
        f"{EVA01}.base.vit.WindowedAttention",
    ),
    HIERARCHICAL: (
        f"{TIMM}.hiera.HieraBlock",
        f"{TIMM}.hieradet_sam2.MultiScaleBlock",
        f"{TIMM}.mvitv2.MultiScaleBlock",
        f"{TIMM}.pvt_v2.Block",
    ),
    GRIDDED: (
        transformers_path("seggpt.SegGptLayer"),
        transformers_path("sam.SamVisionLayer"),
        transformers_path("sam_hq.SamHQVisionLayer"),
    ),
    POOLED: (
        transformers_path("segformer.SegformerLayer"),
        transformers_path("glpn.GLPNLayer"),
        transformers_path("pvt.PvtLayer"),
        transformers_path("pvt_v2.PvtV2BlockLayer"),
        transformers_path("cvt.CvtLayer"),
    ),
    REDUCED: (
        f"{TIMM}.twins.Block",
        f"{MMSEG}.twins.GSAEncoderLayer",
        f"{MMSEG}.mit.TransformerEncoderLayer",
    ),
    PATCHES_NOT_LAST: (transformers_path("yolos.YolosLayer"),),
    CLASS_LAST: (transformers_path("llama4.Llama4VisionEncoderLayer"),),
    GROUPED: (transformers_path("groupvit.GroupViTEncoderLayer"), transformers_path("groupvit.GroupViTStage")),
    TILED: (transformers_path("mllama.MllamaVisionEncoderLayer"),),
    FRAMES: (
        transformers_path("timesformer.TimesformerLayer"),
        transformers_path("videomae.VideoMAELayer"),
        transformers_path("videoprism.VideoPrismLayer"),
        transformers_path("vivit.VivitLayer"),
        transformers_path("vjepa2.VJEPA2Layer"),
    ),
    MAPPED: (
        f"{TIMM}.coat.SerialBlock",
        f"{TIMM}.edgenext.SplitTransposeBlock",
        f"{TIMM}.fastvit.AttentionBlock",
        f"{TIMM}.metaformer.MetaFormerBlock",
        f"{TIMM}.swiftformer.Block",
        f"{TIMM}.visformer.Block",
        f"{TIMM}.xcit.XCABlock",
        transformers_path("swiftformer.SwiftFormerEncoderBlock"),
    ),
    NEIGHBOURED: (f"{TIMM}.volo.Outlooker",),
    PLACED: (f"{TIMM}.convit.Block", f"{TIMM}.efficientformer.MetaBlock1d"),
    MIXED: (f"{TIMM}.cait.LayerScaleBlock",),
    NESTED: (f"{TIMM}.tnt.Block",),
    CHOSEN: (transformers_path("vilt.ViltLayer"),),
    TEXTED: (transformers_path("layoutlmv3.LayoutLMv3Layer"),),
    BATCH_NOT_FIRST: (transformers_path("bridgetower.BridgeTowerResidualAttention"),),
    IN_TURN: (transformers_path("videomt.VideomtLayer"),),
    MESSAGED: (transformers_path("x_clip.XCLIPVisionEncoderLayer"),),
    CONVOLVED: (transformers_path("lfm3_vl.Lfm3VlVisionLayer"),),
    PADDED: (
        transformers_path("gemma4.Gemma4VisionEncoderLayer"),
        transformers_path("kosmos2_5.Kosmos2_5VisionLayer"),
        transformers_path("pix2struct.Pix2StructVisionLayer"),
    ),
    PACKED: (
        transformers_path("pixtral.PixtralAttentionLayer"),
        transformers_path("minimax_m3_vl.MiniMaxM3VLVisionEncoderLayer"),
    ),
}
REASONS = {f"{path}.forward": reason for reason, paths in REFUSED.items() for path in paths}
