"""Time and size of the VAE decoder and the text encoder against the float32 graphs that optimum
exports.

    python -m benchmarks.vae_decode [BUNDLE...] [--source DIR] [--reference BUNDLE] [--work DIR]
                                    [--size 512] [--repeats N] [--threads N] [--json OUT]

Arguments as in benchmarks.unet_step.
"""

from benchmarks import against_optimum

if __name__ == "__main__":
    against_optimum.main(__doc__, {"vae_decoder": 0.45, "text_encoder": 0.40})
