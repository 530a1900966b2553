/* An extension of freeDiameter that makes an S13 server of it: every check is answered with WHITELISTED.
 *   gcc -O2 -shared -fPIC -o fd_server.fdx fd_server.c      (Debian: libfreediameter-dev) */
#include <freeDiameter/extension.h>

enum { S13 = 16777252, TGPP = 10415, ME_IDENTITY_CHECK = 324 };

static struct dict_object *terminal_information, *imei, *equipment_status, *auth_session_state;

/* An AVP of the base protocol (vendor 0) or of 3GPP. */
static struct dict_object *avp_named(vendor_id_t vendor, char *name)
{
	struct dict_object *found = NULL;
	struct dict_avp_request wanted = {.avp_vendor = vendor, .avp_name = name};
	if (fd_dict_search(fd_g_config->cnf_dict, DICT_AVP, AVP_BY_NAME_AND_VENDOR, &wanted, &found, ENOENT))
		fd_log_error("fd_server: there is no AVP %s", name);
	return found;
}

static struct dict_object *command(struct dict_object *application, char *name, uint8_t flags)
{
	struct dict_object *made = NULL;
	struct dict_cmd_data data = {
		.cmd_code = ME_IDENTITY_CHECK, .cmd_name = name, .cmd_flag_val = flags,
		.cmd_flag_mask = CMD_FLAG_REQUEST | CMD_FLAG_PROXIABLE | CMD_FLAG_ERROR,
	};
	int error = fd_dict_new(fd_g_config->cnf_dict, DICT_COMMAND, &data, application, &made);
	if (error && error != EEXIST)
		fd_log_error("fd_server: %s: %s", name, strerror(error));
	return made;
}

/* It stands once in the command; a fixed head is the Session-Id's. */
static int needs(struct dict_object *of, struct dict_object *avp, enum rule_position position)
{
	struct dict_rule_data rule = {.rule_avp = avp, .rule_position = position, .rule_order = position == RULE_FIXED_HEAD, .rule_min = 1, .rule_max = 1};
	int error = fd_dict_new(fd_g_config->cnf_dict, DICT_RULE, &rule, of, NULL);
	return error == EEXIST ? 0 : error;
}

static int put_number(struct msg *into, struct dict_object *what, int32_t number)
{
	struct avp *avp;
	union avp_value value = {.i32 = number};
	CHECK_FCT(fd_msg_avp_new(what, 0, &avp));
	CHECK_FCT(fd_msg_avp_setvalue(avp, &value));
	return fd_msg_avp_add(into, MSG_BRW_LAST_CHILD, avp);
}

static int answer(struct msg **message, struct avp *of, struct session *session, void *opaque, enum disp_action *action)
{
	struct avp *group = NULL, *identity = NULL;
	CHECK_FCT(fd_msg_search_avp(*message, terminal_information, &group));
	if (group)
		CHECK_FCT(fd_msg_search_avp(group, imei, &identity));
	CHECK_FCT(fd_msg_new_answer_from_req(fd_g_config->cnf_dict, message, 0));
	CHECK_FCT(fd_msg_rescode_set(*message, "DIAMETER_SUCCESS", NULL, NULL, 1));
	CHECK_FCT(put_number(*message, auth_session_state, 1));
	CHECK_FCT(put_number(*message, equipment_status, identity ? 0 : 1));
	*action = DISP_ACT_SEND;
	return 0;
}

static int begin(char *unused)
{
	vendor_id_t vendor_id = TGPP;
	struct dict_object *vendor, *application, *request, *reply;
	struct dict_application_data data = {.application_id = S13, .application_name = "S13"};
	CHECK_FCT(fd_dict_search(fd_g_config->cnf_dict, DICT_VENDOR, VENDOR_BY_ID, &vendor_id, &vendor, ENOENT));
	CHECK_FCT(fd_dict_new(fd_g_config->cnf_dict, DICT_APPLICATION, &data, vendor, &application));
	request = command(application, "ECR", CMD_FLAG_REQUEST | CMD_FLAG_PROXIABLE);
	reply = command(application, "ECA", CMD_FLAG_PROXIABLE);
	terminal_information = avp_named(TGPP, "Terminal-Information");
	imei = avp_named(TGPP, "IMEI");
	equipment_status = avp_named(TGPP, "Equipment-Status");
	auth_session_state = avp_named(0, "Auth-Session-State");
	struct dict_object *session = avp_named(0, "Session-Id");
	if (!request || !reply || !terminal_information || !imei || !equipment_status || !auth_session_state || !session)
		return EINVAL;
	CHECK_FCT(needs(request, session, RULE_FIXED_HEAD));
	CHECK_FCT(needs(reply, session, RULE_FIXED_HEAD));
	CHECK_FCT(needs(request, terminal_information, RULE_REQUIRED));
	CHECK_FCT(needs(request, auth_session_state, RULE_REQUIRED));
	CHECK_FCT(needs(request, avp_named(0, "Origin-Host"), RULE_REQUIRED));
	CHECK_FCT(needs(request, avp_named(0, "Origin-Realm"), RULE_REQUIRED));
	CHECK_FCT(needs(request, avp_named(0, "Destination-Realm"), RULE_REQUIRED));
	struct disp_when when = {.app = application, .command = request};
	CHECK_FCT(fd_disp_register(answer, DISP_HOW_CC, &when, NULL, NULL));
	return fd_disp_app_support(application, vendor, 1, 0);
}
EXTENSION_ENTRY("fd_server", begin, "dict_dcca_3gpp");
