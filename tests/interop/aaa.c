/* An extension of freeDiameter that makes a 3GPP AAA server of it, as an ePDG's attach needs it (TS 29.273 clause 11): for each line "IMEI USER-NAME" of
 * a FIFO it sends a check to a realm, and logs Result-Code and Equipment-Status of the answer.
 *   gcc -O2 -shared -fPIC -o aaa.fdx aaa.c      (Debian: libfreediameter-dev)
 *   LoadExtension = "aaa.fdx" : "FIFO REALM"; */
#include <freeDiameter/extension.h>

enum { S13 = 16777252, TGPP = 10415, ME_IDENTITY_CHECK = 324, TEXT_MAX = 256 };

static struct dict_object *request, *result_code, *equipment_status, *auth_session_state, *auth_application_id, *user_name, *destination_realm, *terminal_information, *imei;
static char fifo[TEXT_MAX], realm[TEXT_MAX];

static struct dict_object *avp_named(vendor_id_t vendor, char *name)
{
	struct dict_object *found = NULL;
	struct dict_avp_request wanted = {.avp_vendor = vendor, .avp_name = name};
	if (fd_dict_search(fd_g_config->cnf_dict, DICT_AVP, AVP_BY_NAME_AND_VENDOR, &wanted, &found, ENOENT))
		fd_log_error("aaa: there is no AVP %s", name);
	return found;
}

/* A command of S13 that begins with a Session-Id. */
static int command(struct dict_object *application, char *name, uint8_t flags, struct dict_object **made)
{
	struct dict_cmd_data data = {
		.cmd_code = ME_IDENTITY_CHECK, .cmd_name = name, .cmd_flag_val = flags,
		.cmd_flag_mask = CMD_FLAG_REQUEST | CMD_FLAG_PROXIABLE | CMD_FLAG_ERROR,
	};
	struct dict_rule_data session = {.rule_avp = avp_named(0, "Session-Id"), .rule_position = RULE_FIXED_HEAD, .rule_order = 1, .rule_min = 1, .rule_max = 1};
	CHECK_FCT(fd_dict_new(fd_g_config->cnf_dict, DICT_COMMAND, &data, application, made));
	return fd_dict_new(fd_g_config->cnf_dict, DICT_RULE, &session, *made, NULL);
}

static int put(msg_or_avp *into, struct dict_object *what, union avp_value *value, struct avp **made)
{
	struct avp *avp;
	CHECK_FCT(fd_msg_avp_new(what, 0, &avp));
	if (value)
		CHECK_FCT(fd_msg_avp_setvalue(avp, value));
	if (made)
		*made = avp;
	return fd_msg_avp_add(into, MSG_BRW_LAST_CHILD, avp);
}

static int put_text(msg_or_avp *into, struct dict_object *what, char *text)
{
	union avp_value value = {.os = {.data = (uint8_t *)text, .len = strlen(text)}};
	return put(into, what, &value, NULL);
}

static int put_number(msg_or_avp *into, struct dict_object *what, uint32_t number)
{
	union avp_value value = {.u32 = number};
	return put(into, what, &value, NULL);
}

static int number_in(struct msg *answer, struct dict_object *what)
{
	struct avp *avp = NULL;
	struct avp_hdr *header;
	if (fd_msg_search_avp(answer, what, &avp) || !avp || fd_msg_avp_hdr(avp, &header) || !header->avp_value)
		return -1;
	return (int)header->avp_value->u32;
}

static void answered(void *device, struct msg **answer)
{
	fd_log_notice("aaa: %s has Result-Code %d, Equipment-Status %d", (char *)device, number_in(*answer, result_code), number_in(*answer, equipment_status));
	free(device);
	fd_msg_free(*answer);
	*answer = NULL;
}

/* No RAT information and no Vendor-Specific-Application-Id: an ECR has neither by need. */
static int check(char *device, char *user)
{
	struct msg *message;
	struct avp *terminal;
	CHECK_FCT(fd_msg_new(request, MSGFL_ALLOC_ETEID, &message));
	CHECK_FCT(fd_msg_new_session(message, (os0_t) "aaa", 3));
	CHECK_FCT(put_number(message, auth_session_state, 1));
	CHECK_FCT(fd_msg_add_origin(message, 0));
	CHECK_FCT(put_text(message, destination_realm, realm));
	CHECK_FCT(put_number(message, auth_application_id, S13));
	CHECK_FCT(put_text(message, user_name, user));
	CHECK_FCT(put(message, terminal_information, NULL, &terminal));
	CHECK_FCT(put_text(terminal, imei, device));
	return fd_msg_send(&message, answered, strdup(device));
}

static void *ask(void *unused)
{
	char device[TEXT_MAX], user[TEXT_MAX];
	FILE *lines = fopen(fifo, "r");
	while (lines && fscanf(lines, "%255s %255s", device, user) == 2)
		if (check(device, user))
			fd_log_error("aaa: no check of %s could be sent", device);
	return NULL;
}

static int begin(char *arguments)
{
	vendor_id_t vendor_id = TGPP;
	pthread_t thread;
	struct dict_object *vendor, *application, *answer;
	struct dict_application_data data = {.application_id = S13, .application_name = "S13"};
	if (!arguments || sscanf(arguments, "%255s %255s", fifo, realm) != 2)
		return EINVAL;
	CHECK_FCT(fd_dict_search(fd_g_config->cnf_dict, DICT_VENDOR, VENDOR_BY_ID, &vendor_id, &vendor, ENOENT));
	CHECK_FCT(fd_dict_new(fd_g_config->cnf_dict, DICT_APPLICATION, &data, vendor, &application));
	CHECK_FCT(command(application, "ECR", CMD_FLAG_REQUEST | CMD_FLAG_PROXIABLE, &request));
	CHECK_FCT(command(application, "ECA", CMD_FLAG_PROXIABLE, &answer));
	result_code = avp_named(0, "Result-Code");
	auth_session_state = avp_named(0, "Auth-Session-State");
	auth_application_id = avp_named(0, "Auth-Application-Id");
	user_name = avp_named(0, "User-Name");
	destination_realm = avp_named(0, "Destination-Realm");
	terminal_information = avp_named(TGPP, "Terminal-Information");
	imei = avp_named(TGPP, "IMEI");
	equipment_status = avp_named(TGPP, "Equipment-Status");
	CHECK_FCT(fd_disp_app_support(application, vendor, 1, 0));
	CHECK_POSIX(pthread_create(&thread, NULL, ask, NULL));
	return pthread_detach(thread);
}
EXTENSION_ENTRY("aaa", begin, "dict_dcca_3gpp");
