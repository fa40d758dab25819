"""From images to figures: one table of quantities, for validation and evaluation alike. Torch only.

A `Stage` draws rows of a quantity, one an image; figures are functions of rows (`row_figures`, `estimators`,
`checks`). Who runs the stages, on what devices, and keeps their rows, is not known here.
"""
