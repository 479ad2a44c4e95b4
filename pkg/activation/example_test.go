package activation_test

import (
	"fmt"

	"github.com/mainstay-go/mainstay/pkg/activation"
)

// A service takes what the service manager gave it, and binds by itself what
// it needs when it was started by hand.
func ExampleInherited() {
	sockets, err := activation.Inherited()
	if err != nil {
		fmt.Println(err)
		return
	}
	if sockets == nil {
		s, err := activation.Listen("web", "tcp://127.0.0.1:0?backlog=128")
		if err != nil {
			fmt.Println(err)
			return
		}
		sockets = append(sockets, s)
	}
	for _, s := range sockets {
		fmt.Println(s.Name, s.Network, s.Inherited)
		s.Close()
	}
	// Output: web tcp false
}

func ExampleParseURL() {
	_, _, opts, _ := activation.ParseURL("unix:///run/app.sock?mode=0660")
	fmt.Printf("%#o %d\n", opts.Mode, opts.Backlog)
	_, _, _, err := activation.ParseURL("tcp://localhost:80")
	fmt.Println(err)
	// Output:
	// 0660 4096
	// activation: "tcp://localhost:80": host "localhost": want an IP address, names are not looked up
}
