package setting

import (
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

func TestSettingsAreReadAndWrittenBack(t *testing.T) {
	for _, in := range []string{
		"sync=batch", "sync=never", "sync=interval:5s", "retention.time=7d", "retention.time=-1", "retention.bytes=-1",
		"retention.bytes=0", "retention.bytes=1GiB", "segment.bytes=64KiB", "segment.bytes=2147483647", "segment.time=1s",
		"message.bytes=1KiB", "timestamps=append", "timestamps=create",
	} {
		key, value, _ := strings.Cut(in, "=")
		set := Defaults()
		if err := set.Set(key, value); err != nil {
			t.Errorf("%s: %v", in, err)
		}
		back, err := Parse(set.Text())
		if err != nil || back != set {
			t.Errorf("%s: %+v comes back as %+v, %v", in, set, back, err)
		}
	}
}

func TestBadSettingsAreRefusedAndSayWhatMayBe(t *testing.T) {
	for _, in := range []string{
		"sync=", "sync=always", "sync=interval", "sync=interval:", "sync=interval:1ms", "sync=batch:1s", "retention.time=0",
		"retention.time=7", "retention.time=-2", "retention.bytes=-2", "retention.bytes=many", "segment.bytes=1KiB",
		"segment.bytes=2GiB", "segment.time=0s", "message.bytes=0", "message.bytes=3GiB", "timestamps=", "timestamps=mine",
		"replicas=3", "storage=memory", "colour=red", "=",
	} {
		key, value, _ := strings.Cut(in, "=")
		set := Defaults()
		err := set.Set(key, value)
		if err == nil || err.Code != errcode.BadSetting || err.Hint == "" {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestATimeWithoutAUnitIsToldSo(t *testing.T) {
	for in, lacks := range map[string]bool{"retention.time=7": true, "segment.time=60": true, "sync=interval:5": true, "retention.time=7ms": false, "retention.time=0": false,
		"sync=interval:1ms": false, "sync=7": false, "retention.bytes=-2": false} {
		key, value, _ := strings.Cut(in, "=")
		set := Defaults()
		err := set.Set(key, value)
		if err == nil || strings.Contains(err.What, "has no unit") != lacks || strings.Contains(err.Hint, "d, h, m, s or ms") != lacks {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestMissingSettingsHaveTheirDefaults(t *testing.T) {
	set, err := Parse(nil)
	if err != nil || set != Defaults() || set.RetentionTime != 7*24*time.Hour {
		t.Errorf("%+v, %v", set, err)
	}
}
