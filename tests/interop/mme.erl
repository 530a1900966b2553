%% An MME on OTP's diameter:  erl -noshell -pa EBIN -run mme main -extra PORT HOST REALM EIR_REALM IMEI...
%% Connects to 127.0.0.1:PORT over TCP, asks about all IMEIs at once ("-": a request without Terminal-Information), and prints
%% for each a line `IMEI RESULT STATUS`, RESULT being 2001 or 10415:5422 or what went wrong, STATUS a number or `-`.
%% Then disconnects by DPR, with MME_STAY in its environment not before the end of its standard input. Over SCTP PORT is
%% `sctp:PORT:ADDRESS`, with addresses of its own behind it to which it is bound (`sctp:PORT:ADDRESS:OWN,OWN`).
%% Without IMEIs it asks about each that it reads from standard input, and goes on as long as there are any, whether it is connected or not.
%% With MME_LISTEN=PORT in its environment it takes connections there as well. What OTP finds wrong with an answer (its dictionary is
%% strict) is part of RESULT.
-module(mme).

-include_lib("diameter/include/diameter.hrl").

-export([main/0]).
-export([peer_up/3, peer_down/3, pick_peer/4, prepare_request/3, prepare_retransmit/3, handle_answer/4, handle_error/4,
         handle_request/3]).

-define(TGPP, 10415).
-define(S13, 16777252).

main() ->
    logger:set_primary_config(level, error),
    [Port, Host, Realm, EirRealm | Imeis] = init:get_plain_arguments(),
    ok = diameter:start(),
    true = diameter:subscribe(?MODULE),
    ok = diameter:start_service(?MODULE, service(Host, Realm)),
    [{ok, _} = diameter:add_transport(?MODULE, {listen, [
        {transport_module, diameter_tcp}, {transport_config, [{ip, {127, 0, 0, 1}}, {port, list_to_integer(Listen)}]}
    ]}) || Listen <- [os:getenv("MME_LISTEN")], Listen =/= false],
    {ok, _} = diameter:add_transport(?MODULE, {connect, [{connect_timer, 2000} | transport(Port)]}),
    up(),
    case Imeis of
        [] -> one_by_one(fun(Imei) -> ask(Host, Realm, EirRealm, Imei) end);
        _ -> at_once(fun(Imei) -> ask(Host, Realm, EirRealm, Imei) end, Imeis)
    end,
    halt(0).

one_by_one(Ask) ->
    case io:get_line("") of
        eof -> ok;
        Line ->
            Imei = string:trim(Line),
            io:format("~ts ~ts~n", [Imei, Ask(Imei)]),
            one_by_one(Ask)
    end.

at_once(Ask, Imeis) ->
    Me = self(),
    Askers = [{Imei, spawn_link(fun() -> Me ! {self(), Ask(Imei)} end)} || Imei <- Imeis],
    [receive {Asker, Found} -> io:format("~ts ~ts~n", [Imei, Found]) end || {Imei, Asker} <- Askers],
    [io:get_line("") || os:getenv("MME_STAY") =/= false],
    ok = diameter:remove_transport(?MODULE, true),
    down().

transport("sctp:" ++ Where) ->
    [Port, Theirs | Ours] = string:lexemes(Where, ":,"),
    [{transport_module, diameter_sctp},
     {transport_config, [{ip, address(Each)} || Each <- Ours] ++
     [{raddr, address(Theirs)}, {rport, list_to_integer(Port)}, {sctp_nodelay, true},
      %% Its own default is 1 KiB: answers to many requests at once would come one for each timeout.
      {recbuf, 262144}]}];
transport(Port) ->
    [{transport_module, diameter_tcp},
     {transport_config, [{raddr, {127, 0, 0, 1}}, {rport, list_to_integer(Port)}, {nodelay, true}]}].

address(Text) ->
    {ok, Address} = inet:parse_address(Text),
    Address.

service(Host, Realm) ->
    [{'Origin-Host', Host}, {'Origin-Realm', Realm}, {'Host-IP-Address', [{127, 0, 0, 1}]}, {'Vendor-Id', ?TGPP},
     {'Product-Name', "OTP"}, {'Supported-Vendor-Id', [?TGPP]},
     {'Vendor-Specific-Application-Id', [[{'Vendor-Id', ?TGPP}, {'Auth-Application-Id', [?S13]}]]},
     {decode_format, map}, {string_decode, true},
     {application, [{alias, eir}, {dictionary, s13}, {module, ?MODULE}, {answer_errors, callback}]}].

up() ->
    receive
        #diameter_event{info = Info} when element(1, Info) =:= up -> ok;
        #diameter_event{info = {closed, _, Reason, _}} -> stop({"refused: ~0p~n", [Reason]})
    after 10000 -> stop({"never connected~n", []})
    end.

down() ->
    receive #diameter_event{info = Info} when element(1, Info) =:= down -> ok after 10000 -> stop({"never disconnected~n", []}) end.

stop({Format, Arguments}) ->
    io:format(Format, Arguments),
    halt(1).

ask(Host, Realm, EirRealm, Imei) ->
    Device = case Imei of "-" -> #{}; _ -> #{'Terminal-Information' => [#{'IMEI' => [Imei], 'Software-Version' => ["01"]}]} end,
    Request = Device#{
        'Session-Id' => diameter:session_id(Host), 'Auth-Session-State' => 1, 'Origin-Host' => Host, 'Origin-Realm' => Realm,
        'Destination-Realm' => EirRealm, 'User-Name' => ["001010123456789"],
        'Vendor-Specific-Application-Id' => [#{'Vendor-Id' => ?TGPP, 'Auth-Application-Id' => [?S13]}]
    },
    case diameter:call(?MODULE, eir, ['ECR' | Request], [{timeout, 10000}]) of
        {answer, ['ECA' | Answer], []} -> [result(Answer), $\s, status(Answer)];
        {answer, Message, Errors} -> io_lib:format("objection:~0p:~0p -", [Errors, Message]);
        Other -> io_lib:format("~0p -", [Other])
    end.

result(#{'Result-Code' := [Code], 'Experimental-Result' := []}) -> integer_to_list(Code);
result(#{'Result-Code' := [Code]} = Answer) when not is_map_key('Experimental-Result', Answer) -> integer_to_list(Code);
result(#{'Experimental-Result' := [#{'Vendor-Id' := Vendor, 'Experimental-Result-Code' := Code}]}) -> io_lib:format("~b:~b", [Vendor, Code]);
result(Answer) -> io_lib:format("~0p", [Answer]).

status(#{'Equipment-Status' := [Status]}) -> integer_to_list(Status);
status(_) -> "-".

peer_up(_Service, _Peer, State) -> State.
peer_down(_Service, _Peer, State) -> State.
pick_peer([Peer | _], _Remote, _Service, _State) -> {ok, Peer};
pick_peer([], _Remote, _Service, _State) -> false.
prepare_request(Packet, _Service, _Peer) -> {send, Packet}.
prepare_retransmit(Packet, _Service, _Peer) -> {send, Packet}.
handle_answer(#diameter_packet{msg = Message, errors = Errors}, _Request, _Service, _Peer) -> {answer, Message, Errors}.
handle_error(Reason, _Request, _Service, _Peer) -> Reason.
handle_request(_Packet, _Service, _Peer) -> discard.
