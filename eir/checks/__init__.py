"""The check itself: from a question about a device to a verdict and its reasons, whatever protocol asked.

question.py says what is asked, checker.py answers it by the policy in force (policy.py, whose rules are made of conditions.py), and
explain.py is `eir check`.
"""
