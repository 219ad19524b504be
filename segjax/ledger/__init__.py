"""The ledger of results: published rows, what runs reached, and the tables made from both.

`rows` reads the published numbers, `record` turns finished runs into a JSON file, `tables` writes
the tables of RESULTS.md and README.md, and `cost` estimates what is missing.
"""
