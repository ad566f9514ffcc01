"""Latent diffusion by flow matching, one step of the way per module.

`forward_process` makes noise of images, `learning` teaches a network to point back,
`reverse_process` follows it from noise to an image, `guidance` makes it heed the text more, and
`few_steps` teaches it to leap: four steps instead of twenty.
"""
