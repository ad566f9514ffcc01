"""The first stage of latent diffusion (Rombach et al. 2022): pixels to latents and back."""
