"""The flags of `edgediff generate` that describe an image: one for each option of a call."""

import click

from edgediff.cli.control import parse_controls
from edgediff.cli.flags import flag, interval_form, parse_interval, parse_size

IMAGE_FLAGS = (
    flag(
        "Prompt",
        *("--negative", "negative_prompt"),
        metavar="TEXT",
        help="Things to avoid in the image; needs guidance above 1.",
    ),
    flag(
        "Prompt",
        "--prompt-weights",
        is_flag=True,
        help="Weight words with brackets: (word:1.3), (word) for 1.1, [word] for 1/1.1. Weights go"
        " from -100 to 100; in another form, such as 1e9, they are read as text. \\( is a literal"
        " bracket.",
    ),
    flag(
        "Prompt",
        "--long-prompts",
        is_flag=True,
        help="Encode a long prompt in several chunks; the word BREAK starts a new chunk.",
    ),
    flag(
        "Prompt",
        "--clip-skip",
        type=int,
        metavar="N",
        help="Skip the last N layers of the text encoder, counted as in diffusers.",
    ),
    flag("Image", "--steps", type=int, help="Denoising steps."),
    flag(
        "Image",
        "--size",
        metavar="WxH",
        callback=parse_size,
        help="Width x height in pixels, such as 512x512.",
    ),
    flag(
        "Image",
        *("--guidance", "guidance_scale"),
        type=float,
        help="Classifier-free guidance scale.",
    ),
    flag(
        "Image",
        "--sampler",
        help="euler, euler_a, heun, lms, ddim, ddpm, pndm, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde,"
        " dpmpp_2s, dpmpp_2s_sde, dpmpp_sde, unipc, deis, lcm or tcd.",
    ),
    flag(
        "Image",
        "--spacing",
        help="Spacing of the sampler's noise levels: karras, exponential or beta.",
    ),
    flag(
        "Image",
        "--guidance-rescale",
        type=float,
        metavar="SHARE",
        help="Rescale guided predictions to the standard deviation of the conditional ones, from 0"
        " (off) to 1.",
    ),
    flag(
        "Image",
        "--guidance-interval",
        metavar="START-END",
        callback=parse_interval,
        form=interval_form,
        help="Apply guidance only in part of the steps: 0-0.8 leaves out the last fifth.",
    ),
    flag(
        "Image",
        "--seed",
        type=int,
        multiple=True,
        help="Seed of the image's noise; repeat for more images.  [default: random, and printed]",
    ),
    flag(
        "Image",
        "--variation-seed",
        type=int,
        help="Vary the image of --seed: its noise is blended with the noise of this seed.",
    ),
    flag(
        "Image",
        "--variation-strength",
        type=float,
        metavar="SHARE",
        help="Strength of the variation: 0 gives the image of --seed, 1 that of --variation-seed.",
    ),
    flag(
        "Image to image",
        *("--init", "init_image"),
        metavar="IMAGE",
        type=click.Path(),
        help="Image to start from. Without --size, its own size is kept if that is near the"
        " bundle's default; otherwise it is scaled, and a note says so.",
    ),
    flag(
        "Image to image",
        "--strength",
        type=float,
        help="Strength of the change, above 0 and up to 1.  [default: 0.8, or 1 with --mask]",
    ),
    flag(
        "Image to image",
        "--mask",
        metavar="IMAGE",
        type=click.Path(),
        help="Mask of --init: white areas are repainted, black areas are kept.",
    ),
    flag(
        "Image to image",
        "--keep-unmasked",
        is_flag=True,
        help="Keep every pixel outside the mask exactly as it is.",
    ),
    flag(
        "Image to image",
        "--hires",
        type=float,
        metavar="FACTOR",
        help="Enlarge the image by this factor, or the nearest possible one, and refine it in a"
        " second pass at that size.",
    ),
    flag(
        "Image to image",
        "--hires-strength",
        type=float,
        help="Strength of the second pass; with models of few steps, a high value loses the"
        " composition.  [default: 0.25]",
    ),
    flag(
        "Image to image",
        "--hires-steps",
        type=int,
        help="Steps of a full second pass; the lower --hires-strength, the fewer of its last steps"
        " run.  [default: --steps, at least 4]",
    ),
    flag(
        "Image to image",
        "--hires-mode",
        help="Enlarge in pixel space (pixel; needs an image encoder) or in latent space (latent;"
        " faster, but blurred).  [default: pixel if the bundle has an encoder]",
    ),
    flag(
        "Control",
        "--control",
        metavar="NAME=IMAGE[:SCALE[:START-END]]",
        multiple=True,
        callback=parse_controls,
        help="Guide the image with a control network of the bundle. IMAGE is the map that the"
        " network expects; it is resized to fit. NAME=edges:IMAGE finds the edges of a photo,"
        " NAME=invert:IMAGE inverts dark lines on white. SCALE (default 1) is the strength,"
        " START-END (default 0-1) the part of the steps, as in canny=edges:photo.jpg:0.8:0-0.5."
        " Once for each network.",
    ),
)
