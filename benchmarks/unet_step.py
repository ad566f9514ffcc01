"""Time and size of one UNet evaluation against the float32 graph that optimum exports.

    python -m benchmarks.unet_step [BUNDLE...] [--source DIR] [--reference BUNDLE] [--work DIR]
                                   [--size 512] [--repeats N] [--threads N] [--json OUT]

Without BUNDLE, it measures the int8 export of SOURCE, by default a pipeline of Stable Diffusion
1.5's shape. The error is that of the measured run's output against the reference.
"""

from benchmarks import against_optimum

if __name__ == "__main__":
    against_optimum.main(__doc__, {"unet": 0.33})
