package service_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain has many tests wait at the same time: most of their time goes into waiting.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "12")
	os.Exit(m.Run())
}
