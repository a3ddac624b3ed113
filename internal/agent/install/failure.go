package install

import (
	"errors"
	"fmt"

	"github.com/lpmos/lpmos"
)

// Failure is an error with what a person needs: a stable code, a sentence that
// says why, and one that says what to do.
type Failure struct {
	Code     string
	Stage    lpmos.Stage // filled in by Install when it is empty
	Cause    string
	NextStep string
	Err      error // the technical chain, may be nil
}

func (f *Failure) Error() string {
	if f.Err == nil {
		return f.Code + ": " + f.Cause
	}
	return f.Code + ": " + f.Cause + " (" + f.Err.Error() + ")"
}

func (f *Failure) Unwrap() error { return f.Err }

const (
	nextReport  = "This is a fault of LPMOS: keep the log and report it."
	nextImage   = "Import the image again, then retry the task."
	nextDisk    = "Check the disk's health and cabling, then retry the task."
	nextNetwork = "Check that the region can be reached and has the image, then retry the task."
)

// staged makes any error a *Failure and fills in its stage.
func staged(stage lpmos.Stage, err error) error {
	f, ok := errors.AsType[*Failure](err)
	if !ok {
		f = &Failure{Code: "install_failed", Cause: "A step of the installation failed: " + err.Error() + ".",
			NextStep: "Read the log of this attempt, then retry the task.", Err: err}
	}
	c := *f
	if c.Stage == "" {
		c.Stage = stage
	}
	return &c
}

// staged0 is staged for an error that may be nil.
func staged0(stage lpmos.Stage, err error) error {
	if err == nil {
		return nil
	}
	return staged(stage, err)
}

func writeFailed(what string, err error) error {
	if _, ok := errors.AsType[*Failure](err); ok || err == nil {
		return err
	}
	return &Failure{Code: "disk_write_failed", Cause: "Writing to " + what + " went wrong.", NextStep: nextDisk, Err: err}
}

func commandFailed(what string, err error) error {
	return &Failure{Code: "command_failed", Cause: fmt.Sprintf("%s failed: %v.", what, err),
		NextStep: "Read the log of this attempt; if it names the disk, " + lowerFirst(nextDisk), Err: err}
}

func tooLarge(image, room int64) error {
	return &Failure{Code: "image_too_large", Cause: "The image needs " + lpmos.FormatBytes(image) + " and the root partition has " + lpmos.FormatBytes(room) + ".",
		NextStep: "Choose a larger disk or a smaller image."}
}

func corrupt(format string, args ...any) error {
	return &Failure{Code: "image_corrupt", Cause: "The image is damaged: " + fmt.Sprintf(format, args...) + ".", NextStep: nextImage}
}

func missing(what, digest string, err error) error {
	return &Failure{Code: "image_missing", Cause: "The region does not have the " + what + " of the image (" + digest + ").", NextStep: nextImage, Err: err}
}

func lowerFirst(s string) string { return string(s[0]|0x20) + s[1:] }
