"""The recipe of the built-in demo model: a small latent diffusion model of emoji, from scratch."""
