"""Time and size of one UNet evaluation against the float32 graph that optimum exports.

    python -m benchmarks.unet_step [BUNDLE...] [--source DIR] [--reference BUNDLE] [--work DIR]
                                   [--size 512] [--repeats N] [--threads N] [--json OUT]

Without BUNDLE, the int8 export of SOURCE, which without --source is a pipeline of Stable Diffusion
1.5's shape. Error is that of the very output that was timed, against the reference's.
"""

from benchmarks import against_optimum

if __name__ == "__main__":
    against_optimum.main(__doc__, {"unet": 0.33})
