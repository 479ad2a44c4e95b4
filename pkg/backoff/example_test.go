package backoff_test

import (
	"fmt"
	"time"

	"github.com/mainstay-go/mainstay/pkg/backoff"
)

func ExampleBackoff_Next() {
	b := backoff.Backoff{Policy: backoff.Policy{Jitter: -1}}
	for range 5 {
		fmt.Println(b.Next(0)) // dies at once, each time
	}
	fmt.Println(b.Next(10 * time.Minute)) // was well for ten minutes
	// Output:
	// 0s
	// 200ms
	// 400ms
	// 800ms
	// 1.6s
	// 0s
}
