package boottime

import (
	"testing"
	"time"
)

func TestItCountsOnAndKnowsItsStart(t *testing.T) {
	before, began := Up(), time.Now()
	time.Sleep(20 * time.Millisecond)
	if up, took := Up()-before, time.Since(began); up < 20*time.Millisecond || up > took+time.Second {
		t.Errorf("it counted %v in %v", up, took)
	}
	if boot := Boot(); boot != Boot() {
		t.Error("the machine started in between?")
	}
}

func BenchmarkUp(b *testing.B) {
	for b.Loop() {
		Up()
	}
}
