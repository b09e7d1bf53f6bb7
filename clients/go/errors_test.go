package trunkline

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

func TestAServerErrorTellsAllThatIsKnownOfItsCode(t *testing.T) {
	for _, row := range errcode.Table {
		e := &ServerError{Code: row.Code, Text: "it happened; while so; do that"}
		advice, _ := row.Code.Advice()
		if e.Cause() != advice.Cause || e.Fix() != advice.Fix || e.Cause() == "" || e.Fix() == "" {
			t.Errorf("%s: cause %q, fix %q", row.Code, e.Cause(), e.Fix())
		}
		if e.Retriable() != row.Retriable || e.OutcomeUnknown() != (row.Outcome == errcode.Unknown) || errors.Is(e, ErrOutcomeUnknown) != e.OutcomeUnknown() {
			t.Errorf("%s: retriable %v, outcome unknown %v", row.Code, e.Retriable(), e.OutcomeUnknown())
		}
		if e.What() != "it happened; while so" || e.Hint() != "do that" {
			t.Errorf("%s: %q and %q", row.Code, e.What(), e.Hint())
		}
		if text := fmt.Errorf("get t: %w", e).Error(); text != "get t: "+string(row.Code)+": "+e.Text || strings.Contains(text, "\n") {
			t.Errorf("it says %q", text)
		}
	}
}

func TestACodeOfALaterServerIsAnErrorToo(t *testing.T) {
	e := &ServerError{Code: "FROM_LATER", Text: "it happened"}
	if e.What() != "it happened" || e.Hint() != "" || e.Cause() != "" || e.Fix() != "" || e.Retriable() || e.OutcomeUnknown() {
		t.Errorf("%+v: %q %q %q %q", e, e.What(), e.Hint(), e.Cause(), e.Fix())
	}
}
