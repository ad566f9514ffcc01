"""The export stage: a diffusers pipeline in, a bundle out. Runs on a dev machine, with torch.

export      the order of the stages
sources     a hub id, a diffusers folder or a safetensors file → components, one at a time
scheduling  a diffusers scheduler's config → the bundle's noise schedule and defaults
tokenizer   CLIP's vocabulary and merges → tokenizer.json
trace       a torch module → a float32 graph, without clutter (tidy)
observe     what goes on inside a float32 graph, for the two that follow
precision   a float32 graph → float16
quantize    a float32 graph → int8
fidelity    what it cost: fixtures, errors against torch, pictures against the float model's
write       graphs and folders on disk, whole or not at all
"""
