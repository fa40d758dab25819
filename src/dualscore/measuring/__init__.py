"""From images to figures: one table of quantities, for validation and evaluation alike. Torch only.

A quantity draws rows, one an image (`quantities`, `identities`); figures are functions of rows (`figures`,
`estimators`, `checks`). Who runs the quantities, on what devices, and keeps their rows, is not known here.
"""
