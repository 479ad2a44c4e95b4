package tlsrec

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// roleEnv tells the test binary to be one of the processes of a test.
const roleEnv = "TLSREC_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := playWorker(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
