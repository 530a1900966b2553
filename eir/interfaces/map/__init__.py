"""MAP checkIMEI (TS 29.002 8.7, interfaces F and Gf): how MSCs and SGSNs of 2G and 3G ask, over eir.wire.ss7; and a probe that asks so."""
