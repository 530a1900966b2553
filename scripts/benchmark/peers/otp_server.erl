%% otp_server: an S13 server on OTP's diameter application that answers every check with WHITELISTED.
%%   erl -noshell -noinput -pa EBIN -run otp_server main PORT REALM
%% Set for speed: messages are decoded to maps, texts stay binaries, answers go out without Nagle's delay.
-module(otp_server).
-export([main/1]).
-export([peer_up/3, peer_down/3, pick_peer/4, prepare_request/3, prepare_retransmit/3, handle_answer/4, handle_error/4, handle_request/3]).
-include_lib("diameter/include/diameter.hrl").
-include_lib("diameter/include/diameter_gen_base_rfc6733.hrl").

-define(S13, 16777252).
-define(TGPP, 10415).

main([Port, Realm]) ->
    Host = "otp." ++ Realm,
    persistent_term:put(?MODULE, {list_to_binary(Host), list_to_binary(Realm)}),
    ok = diameter:start(),
    Offered = #'diameter_base_Vendor-Specific-Application-Id'{'Vendor-Id' = ?TGPP, 'Auth-Application-Id' = [?S13]},
    Applications = [{application, [{alias, Alias}, {dictionary, Dictionary}, {module, ?MODULE}]}
                    || {Alias, Dictionary} <- [{base, diameter_gen_base_rfc6733}, {s13, s13}]],
    ok = diameter:start_service(?MODULE, [
        {'Origin-Host', Host}, {'Origin-Realm', Realm}, {'Vendor-Id', ?TGPP}, {'Product-Name', "otp"},
        {'Supported-Vendor-Id', [?TGPP]}, {'Vendor-Specific-Application-Id', [Offered]},
        {decode_format, map}, {string_decode, false}, {restrict_connections, false} | Applications]),
    Listen = [{ip, {127, 0, 0, 1}}, {port, list_to_integer(Port)}, {reuseaddr, true}, {nodelay, true}],
    {ok, _} = diameter:add_transport(?MODULE, {listen, [{transport_module, diameter_tcp}, {transport_config, Listen}]}).

handle_request(#diameter_packet{msg = ['ECR' | Request], errors = []}, _Service, _Peer) ->
    #{'Session-Id' := Session, 'Terminal-Information' := #{'IMEI' := [_]}} = Request,
    {Host, Realm} = persistent_term:get(?MODULE),
    {reply, ['ECA', {'Session-Id', Session}, {'Result-Code', 2001}, {'Auth-Session-State', 1},
             {'Origin-Host', Host}, {'Origin-Realm', Realm}, {'Equipment-Status', 0}]};
handle_request(_, _, _) ->
    {answer_message, 5012}.

%% What a node that only answers is never asked.
peer_up(_Service, _Peer, State) -> State.
peer_down(_Service, _Peer, State) -> State.
pick_peer(_, _, _Service, _State) -> false.
prepare_request(_, _Service, _Peer) -> {discard, none}.
prepare_retransmit(_, _Service, _Peer) -> {discard, none}.
handle_answer(_, _, _Service, _Peer) -> ok.
handle_error(_, _, _Service, _Peer) -> ok.
