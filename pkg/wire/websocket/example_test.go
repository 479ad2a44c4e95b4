package websocket_test

import (
	"fmt"

	"github.com/mainstay-go/mainstay/pkg/wire/websocket"
)

// A server and a client speak with each other; the connection is a byte slice
// in each direction.
func Example() {
	config := &websocket.Config{}
	client, server := websocket.NewClient(config), websocket.NewServer(config)

	request, err := websocket.NewRequest("ws://example.com/chat", &websocket.RequestOptions{Subprotocols: []string{"chat"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	toServer, _ := client.Append(nil, request)

	_, msg, _, err := server.Split(toServer, false)
	if err != nil {
		fmt.Println(err)
		return
	}
	asked, err := websocket.ParseRequest(msg[1:])
	if err != nil {
		fmt.Println(err)
		return
	}
	response, _, _, err := websocket.Accept(asked, &websocket.AcceptOptions{Subprotocols: []string{"chat"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	toClient, _ := server.Append(nil, response)
	toClient, _ = server.Append(toClient, append([]byte{byte(websocket.Text)}, "welcome"...))

	for len(toClient) > 0 {
		n, msg, ok, err := client.Split(toClient, false)
		if err != nil {
			fmt.Println(err)
			return
		}
		if ok && websocket.Kind(msg[0]) == websocket.Text {
			fmt.Printf("%s: %s\n", client.Subprotocol(), msg[1:])
		}
		toClient = toClient[n:]
	}
	// Output: chat: welcome
}

// A session goes on in another process, in the middle of a message.
func ExampleSession_AppendState() {
	config := &websocket.Config{}
	here := websocket.NewServer(config)
	for _, in := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		"\x01\x85\x00\x00\x00\x00hello", // the first fragment of a text
	} {
		if _, _, _, err := here.Split([]byte(in), false); err != nil {
			fmt.Println(err)
			return
		}
	}
	state, _ := here.AppendState(nil)

	there := websocket.NewServer(config)
	if err := there.RestoreState(state); err != nil {
		fmt.Println(err)
		return
	}
	_, msg, _, err := there.Split([]byte("\x80\x86\x00\x00\x00\x00 there"), false) // the last
	fmt.Printf("%s %v\n", msg[1:], err)
	// Output: hello there <nil>
}
