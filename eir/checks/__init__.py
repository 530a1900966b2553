"""Decision of checks: from a question about a device to a verdict with its reasons, for every protocol.

question.py defines the question. checker.py answers it by the policy in force (policy.py, with the conditions of
conditions.py). explain.py implements `eir check`.
"""
