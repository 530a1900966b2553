"""The S13 application (3GPP TS 29.272 clause 6): from an ECR to a question, and from a verdict to an ECA.

`application` is what the Diameter node is handed, `dictionary` and `grammar` its AVPs, `service` what answers, `lane` and
`compiled` the shortcut, `probe` the asking side. May import eir.checks, eir.wire.diameter, eir.device and eir.errors; knows no store,
no configuration and no metrics library.
"""
