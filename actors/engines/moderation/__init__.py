"""The models of the moderate step, in a model process: NudeNet and Stable Diffusion's safety checker."""
