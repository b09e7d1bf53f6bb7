package errcode

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

const page = "../ERRORS.md"

// TestMain takes the flag -rewrite, which writes the page of errors anew from the table.
func TestMain(m *testing.M) {
	rewrite := flag.Bool("rewrite", false, "write protocol/ERRORS.md anew")
	flag.Parse()
	if *rewrite {
		if err := os.WriteFile(page, []byte(errorsPage()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// errorsPage is the page for people, made from the table.
func errorsPage() string {
	var b strings.Builder
	b.WriteString(`# Errors

Every error of the server has a code, which never changes, and a text that says what happened and what to do:
` + "`-ERR CODE 'what happened; what to do'`" + `. This page says of each code how it comes about and how to get past it;
` + "`trunkline errors CODE`" + ` says the same.

*Retry*: whether the same request may succeed later without being changed. *Record*: what became of the record of a publish
that failed so; where it is unknown, the record may appear in the log.

`)
	for _, row := range Table {
		a := advice[row.Code]
		fmt.Fprintf(&b, "## %s\n\n%s. %s\n\n", row.Code, strings.ToUpper(row.Text[:1])+row.Text[1:], a.Cause)
		fmt.Fprintf(&b, "**What to do:** %s\n\n", a.Fix)
		fmt.Fprintf(&b, "Retry: %s. Record: %s.", row.retry(), row.record())
		if row.Closes {
			b.WriteString(" The server closes the connection.")
		}
		b.WriteString("\n\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func TestThePageOfErrorsIsTheTable(t *testing.T) {
	got, err := os.ReadFile(page)
	if err != nil || string(got) != errorsPage() {
		t.Errorf("write it anew with go test ./protocol/errcode -rewrite (%v)", err)
	}
}

func TestEveryCodeHasAdvice(t *testing.T) {
	for _, row := range Table {
		a, ok := row.Code.Advice()
		for _, s := range []string{a.Cause, a.Fix} {
			if !ok || len(s) < 10 || !strings.HasSuffix(s, ".") && !strings.HasSuffix(s, "?") || strings.Contains(s, "\n") {
				t.Errorf("%s: %q is no advice", row.Code, s)
			}
		}
		text, ok := Explain(row.Code)
		for _, want := range []string{string(row.Code) + ": " + row.Text, a.Cause, a.Fix} {
			if !ok || !strings.Contains(text, want) {
				t.Errorf("%s is explained without %q:\n%s", row.Code, want, text)
			}
		}
		if strings.Contains(text, "yes: ") != row.Retriable || strings.Contains(text, "may appear") != (row.Outcome == Unknown) || strings.Contains(text, "closes the connection") != row.Closes {
			t.Errorf("%s is explained otherwise than it is:\n%s", row.Code, text)
		}
	}
	if len(advice) != len(Table) {
		t.Errorf("advice on %d codes, and there are %d", len(advice), len(Table))
	}
}

func TestAnUnknownCodeIsNotExplained(t *testing.T) {
	if text, ok := Explain("NO_SUCH_CODE"); ok || text != "" {
		t.Error(text)
	}
	if _, ok := Code("NO_SUCH_CODE").Advice(); ok {
		t.Error("there is advice on it")
	}
}
