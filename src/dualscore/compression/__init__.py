"""Files of images, coded by a denoiser's bound."""
