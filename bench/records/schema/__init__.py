"""Holds the layout of a record as typed models: what each key means, in which unit, and which values it may have.

bench.records.record.load validates by them, docs/record.schema.json and the page of the record are made of them.
"""
