/* Diameter on the wire, as much as load.c and echo.c need of it (RFC 6733 3 and 4; TS 29.272 for S13). */
#ifndef WIRE_H
#define WIRE_H
#include <stdint.h>
#include <string.h>

enum { HEADER = 20, AVP_HEADER = 8, VENDOR_HEADER = 12 };
enum { REQUEST = 0x80, PROXIABLE = 0x40, ERROR = 0x20, RETRANSMITTED = 0x10 };
enum { CAPABILITIES_EXCHANGE = 257, DEVICE_WATCHDOG = 280, DISCONNECT_PEER = 282, ME_IDENTITY_CHECK = 324 };
enum {
	USER_NAME = 1, HOST_IP_ADDRESS = 257, AUTH_APPLICATION_ID = 258, VENDOR_SPECIFIC_APPLICATION_ID = 260, SESSION_ID = 263, ROUTE_RECORD = 282,
	ORIGIN_HOST = 264, SUPPORTED_VENDOR_ID = 265, VENDOR_ID = 266, RESULT_CODE = 268, PRODUCT_NAME = 269,
	DISCONNECT_CAUSE = 273, AUTH_SESSION_STATE = 277, ORIGIN_STATE_ID = 278, DESTINATION_REALM = 283, ORIGIN_REALM = 296,
	EXPERIMENTAL_RESULT = 297, EXPERIMENTAL_RESULT_CODE = 298, INBAND_SECURITY_ID = 299, DRMP = 301, TERMINAL_INFORMATION = 1401, IMEI = 1402,
	SOFTWARE_VERSION = 1403, EQUIPMENT_STATUS = 1445,
};
enum { S13 = 16777252, TGPP = 10415, SUCCESS = 2001, EQUIPMENT_UNKNOWN = 5422, NO_STATE_MAINTAINED = 1, MANDATORY = 0x40 };

static inline uint32_t get32(const uint8_t *at) { return (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3]; }
static inline uint32_t get24(const uint8_t *at) { return (uint32_t)at[0] << 16 | at[1] << 8 | at[2]; }
static inline void put32(uint8_t *at, uint32_t value)
{
	at[0] = value >> 24, at[1] = value >> 16, at[2] = value >> 8, at[3] = value;
}
static inline void put24(uint8_t *at, uint32_t value) { at[0] = value >> 16, at[1] = value >> 8, at[2] = value; }
static inline uint32_t padded(uint32_t length) { return length + (-length & 3); }

/* A message that is being written. */
struct out {
	uint8_t *start, *at;
};

static inline struct out begin(uint8_t *buffer, int flags, uint32_t command, uint32_t application, uint32_t hop_by_hop, uint32_t end_to_end)
{
	buffer[0] = 1;
	buffer[4] = flags;
	put24(buffer + 5, command);
	put32(buffer + 8, application);
	put32(buffer + 12, hop_by_hop);
	put32(buffer + 16, end_to_end);
	return (struct out){buffer, buffer + HEADER};
}
static inline uint32_t finish(struct out *out)
{
	put24(out->start + 1, out->at - out->start);
	return out->at - out->start;
}
/* Open an AVP: where its data begin. `close_avp` sets its length and pads it. */
static inline uint8_t *open_avp(struct out *out, uint32_t code, uint32_t vendor, int flags)
{
	uint8_t *avp = out->at;
	put32(avp, code);
	avp[4] = flags | (vendor ? 0x80 : 0);
	if (vendor)
		put32(avp + 8, vendor);
	out->at += vendor ? VENDOR_HEADER : AVP_HEADER;
	return avp;
}
static inline void close_avp(struct out *out, uint8_t *avp)
{
	uint32_t length = out->at - avp;
	put24(avp + 5, length);
	while (length++ & 3)
		*out->at++ = 0;
}
static inline uint8_t *add(struct out *out, uint32_t code, uint32_t vendor, int flags, const void *data, uint32_t length)
{
	uint8_t *avp = open_avp(out, code, vendor, flags), *start = out->at;
	memcpy(start, data, length);
	out->at += length;
	close_avp(out, avp);
	return start;
}
static inline uint8_t *add_text(struct out *out, uint32_t code, const char *text)
{
	return add(out, code, 0, code == PRODUCT_NAME ? 0 : MANDATORY, text, strlen(text));
}
static inline void add_number(struct out *out, uint32_t code, uint32_t vendor, uint32_t number)
{
	uint8_t data[4];
	put32(data, number);
	add(out, code, vendor, MANDATORY, data, 4);
}
static inline void add_s13(struct out *out)
{
	uint8_t *group = open_avp(out, VENDOR_SPECIFIC_APPLICATION_ID, 0, MANDATORY);
	add_number(out, VENDOR_ID, 0, TGPP);
	add_number(out, AUTH_APPLICATION_ID, 0, S13);
	close_avp(out, group);
}
/* What a CER and a CEA say of who sends them, after the Result-Code of the latter (5.3). */
static inline void add_capabilities(struct out *out, const char *host, const char *realm, const char *product)
{
	static const uint8_t loopback[] = {0, 1, 127, 0, 0, 1};
	add_text(out, ORIGIN_HOST, host);
	add_text(out, ORIGIN_REALM, realm);
	add(out, HOST_IP_ADDRESS, 0, MANDATORY, loopback, sizeof loopback);
	add_number(out, VENDOR_ID, 0, TGPP);
	add_text(out, PRODUCT_NAME, product);
	add_number(out, SUPPORTED_VENDOR_ID, 0, TGPP);
	add_number(out, INBAND_SECURITY_ID, 0, 0);
	add_s13(out);
}
#endif
