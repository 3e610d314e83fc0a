"""The report of a study or a run: one HTML file that opens without a network, drawn from the files
of the folder alone.

`folder` reads the files; `scores` and `findings` say what the numbers allow to say; `*_figures`,
`maps` and `interpretation.figures` show them; `sections`, `mask_section` and `page` put the page
together.
"""
