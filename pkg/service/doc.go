// Package service is what an application imports: it says what is served on
// which listener, and Main makes a whole program of it.
//
//	type user struct{ Name string } // travels with the connection
//
//	func main() {
//		s := service.New("chat")
//		s.Listen("line", "tcp://127.0.0.1:8080", service.Text[user]{
//			OnMessage: func(c *service.Conn[user], line []byte) { c.Send(line) },
//		})
//		s.HTTP("http", "tcp://127.0.0.1:8081", mux)
//		s.Main()
//	}
//
// # One program, several roles
//
// The program is started by systemd, or by hand, with the command "run" and
// is then the supervisor. It starts itself again as workers, which serve.
// With the other commands (status, reload, scale, stop ...) it asks a running
// service. So main is run in each of these processes: what it does before
// Main must be cheap and must not have effects; what a worker needs is made
// in OnWorkerStart.
//
// # Listeners
//
// A listener is a name, a socket and a protocol. The socket comes from
// systemd, under its FileDescriptorName=, or is bound to the address that
// --listen, the configuration or, when the program is started by hand, the
// code says. The protocol is what the operator gives it (--serve, or serve in
// [listener.NAME]: the name of a Kind), else what Listen said in the code,
// else the Kind that has the listener's own name.
//
// Invariant: whatever is wrong with sockets, configuration or flags is an
// error before the first worker is started.
//
// # Where to start reading
//
//	service.go   Service: what an application says; Main
//	protocol.go  Conn, Raw, Text, Length, Framed, Web, HTTP ...
//	websocket.go WebSocket, and what Conn has for it
//	events.go    what a connection of a Web can turn into; Events
//	dial.go      Dialer, Client: connections to elsewhere
//	websocketdial.go WebSocketDialer: WebSockets to elsewhere
//	config.go    the keys of the configuration
//	hook.go      a command as a setting
//	tls.go       certificates, authorities, proxies
//	plan.go      sockets and protocols, paired by name
//	command.go   the command line
//	run.go       the supervisor's role
//	work.go      the worker's role
//	status.go    how status is shown
package service
