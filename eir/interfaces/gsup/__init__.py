"""GSUP: an OsmoMSC's CHECK-IMEI becomes a question, a verdict becomes its result, and everything else goes through to the HLR.

ipa.py cuts bytes into frames and knows who somebody is (IPA, CCM); message.py is the one operation and the errors of the others;
link.py is the connection of a client, hlr.py the one towards the HLR that goes with it; server.py translates, and has all clients of a
worker; probe.py is a client. Imports eir.checks, eir.wire.peers, and of eir.wire.diameter what is the same for every protocol. Never meets
another protocol.
"""
