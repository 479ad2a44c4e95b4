package notify_test

import (
	"fmt"
	"net"
	"os"

	"github.com/mainstay-go/mainstay/pkg/notify"
)

func Example() {
	// What the service manager does.
	dir, err := os.MkdirTemp("", "notify")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer manager.Close()
	os.Setenv("NOTIFY_SOCKET", dir+"/notify")

	// What the service does.
	notifier, err := notify.FromEnv()
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := notifier.Ready("2/2 ready, generation 1"); err != nil {
		fmt.Println(err)
	}

	msg := make([]byte, 4096)
	n, err := manager.Read(msg)
	fmt.Printf("%s %v\n", msg[:n], err)
	// Output:
	// READY=1
	// STATUS=2/2 ready, generation 1 <nil>
}
