"""The S13 application (3GPP TS 29.272 clause 6): from an ECR to a verdict to an ECA.

May import eir.diameter, eir.device, eir.checks.policy and eir.errors; knows no store, no configuration and no metrics library.
"""
