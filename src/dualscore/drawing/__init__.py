"""The commands sample, denoise and inpaint: from a model's file to a folder of samples."""
