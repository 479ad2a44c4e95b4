package system

import (
	"os"
	"os/exec"
	"testing"
)

// tests are what is shown on each systemd, one after the other in one boot.
// Run one by `go test -run 'TestSystemd252/FirstConnection' ./test/system`.
var tests = []struct {
	name string
	run  func(*testing.T, *machine)
}{
	{"UnitsAndExamplesAreCleanForVerify", unitsAndExamplesAreCleanForVerify},
	{"UnitsAreAtMostOnePointExposed", unitsAreAtMostOnePointExposed},

	{"FirstConnectionStartsTheService", firstConnectionStartsTheService},
	{"SocketsAreKnownByNameNotByOrder", socketsAreKnownByNameNotByOrder},
	{"InstancesHaveSocketsAndSettingsOfTheirOwn", instancesHaveSocketsAndSettingsOfTheirOwn},
	{"BrokenConfigurationFailsTheStartAndSaysWhere", brokenConfigurationFailsTheStartAndSaysWhere},
	{"FirstGenerationThatCannotStartFailsTheStart", firstGenerationThatCannotStartFailsTheStart},

	{"ReloadBringsNewCodeAndLosesNobody", reloadBringsNewCodeAndLosesNobody},
	{"ReloadToProgramThatExitsAtStartIsRolledBack", reloadToProgramThatExitsAtStartIsRolledBack},
	{"ReloadToProgramThatHangsAtStartIsRolledBack", reloadToProgramThatHangsAtStartIsRolledBack},
	{"ReloadToProgramThatCrashesRightAfterReadyIsRolledBack", reloadToProgramThatCrashesRightAfterReadyIsRolledBack},
	{"ReloadWithBrokenConfigurationChangesNothing", reloadWithBrokenConfigurationChangesNothing},
	{"DropInChangesTheNumberOfWorkersAtReload", dropInChangesTheNumberOfWorkersAtReload},
	{"RestartUnderTrafficLosesNobody", restartUnderTrafficLosesNobody},
	{"OpenConnectionsLiveThroughReloadMoveAndScale", openConnectionsLiveThroughReloadMoveAndScale},

	{"KilledWorkerIsRespawnedAndTheOthersAreUntouched", killedWorkerIsRespawnedAndTheOthersAreUntouched},
	{"ConnectionsAtABoundaryOutliveTheKillOfTheirWorker", connectionsAtABoundaryOutliveTheKillOfTheirWorker},
	{"WorkerThatDiesAtOnceIsBackedOffFrom", workerThatDiesAtOnceIsBackedOffFrom},
	{"ConnectionsMadeWhileNobodyAcceptsAreServedAfterwards", connectionsMadeWhileNobodyAcceptsAreServedAfterwards},
	{"ConnectionsThatWokeDeadWorkerAreServedByTheOthers", connectionsThatWokeDeadWorkerAreServedByTheOthers},
	{"KilledSupervisorIsFollowedByAnotherAndNobodyIsLost", killedSupervisorIsFollowedByAnotherAndNobodyIsLost},
	{"SupervisorKilledDuringAReloadIsFollowedAtOnce", supervisorKilledDuringAReloadIsFollowedAtOnce},
	{"SupervisorThatHangsIsReplacedByTheWatchdog", supervisorThatHangsIsReplacedByTheWatchdog},

	{"OpenConnectionsOutliveTheDeathOfTheSupervisor", openConnectionsOutliveTheDeathOfTheSupervisor},
	{"OpenConnectionsOutliveRestartsInARow", openConnectionsOutliveRestartsInARow},
	{"RestartIntoSomethingBrokenLeavesTheWorkersAlone", restartIntoSomethingBrokenLeavesTheWorkersAlone},
	{"RestartThatComesTooEarlyForTheProgramLosesNobody", restartThatComesTooEarlyForTheProgramLosesNobody},

	{"RenewedCertificateIsShownAndNobodyIsLost", renewedCertificateIsShownAndNobodyIsLost},
	{"SecretsAreInNothingThatIsWritten", secretsAreInNothingThatIsWritten},
	{"ReplacedKeyIsForgottenAfterTwoReloads", replacedKeyIsForgottenAfterTwoReloads},

	{"EverythingAtOnceInAnyOrder", everythingAtOnceInAnyOrder},

	{"CertificatesComeAsCredentials", certificatesComeAsCredentials},

	{"RollbackReturnsToTheProgramOfBeforeWhateverDiedMeanwhile", rollbackReturnsToTheProgramOfBeforeWhateverDiedMeanwhile},
	{"StatusTellsOfWorkersThatHaveNoSupervisor", statusTellsOfWorkersThatHaveNoSupervisor},
	{"DoctorFindsNothingWrongAndWhatIs", doctorFindsNothingWrongAndWhatIs},
	{"StrangerIsNamedAndDoesNotOutliveTheStop", strangerIsNamedAndDoesNotOutliveTheStop},

	{"StopLeavesNoProcess", stopLeavesNoProcess},
	{"StopTakesWorkersOfAnEarlierSupervisorAlong", stopTakesWorkersOfAnEarlierSupervisorAlong},
	{"StopByTheCommandLineStaysStopped", stopByTheCommandLineStaysStopped},
	{"StopOfTheTargetClosesThePorts", stopOfTheTargetClosesThePorts},
	{"FailureForGoodLeavesNoProcess", failureForGoodLeavesNoProcess},
	{"StoreThatOutlivesAStopDoesNoHarm", storeThatOutlivesAStopDoesNoHarm},

	{"JournalHasFieldsByWhichWorkersAreFound", journalHasFieldsByWhichWorkersAreFound},
	{"JournalExplainsADeathAndARolledBackReload", journalExplainsADeathAndARolledBackReload},
	{"FrozenJournaldHoldsUpNobody", frozenJournaldHoldsUpNobody},
	{"StoppedAndRestartedJournaldHurtsNobody", stoppedAndRestartedJournaldHurtsNobody},

	{"MetricsAreServedOnASocketOfTheirOwn", metricsAreServedOnASocketOfTheirOwn},
	{"SumsNeverGoBackWhileWorkersAreKilled", sumsNeverGoBackWhileWorkersAreKilled},
	{"WorkerThatIsNotReadyIsSpared", workerThatIsNotReadyIsSpared},
	{"ApplicationsFiguresOutliveReloads", applicationsFiguresOutliveReloads},
	{"DeathOfAWorkerIsToldToACommand", deathOfAWorkerIsToldToACommand},
}

func TestSystemd252(t *testing.T) { onContainer(t, "bookworm", 252) }

func TestSystemd257(t *testing.T) { onContainer(t, "trixie", 257) }

// Only where no container can be had, or when asked for.
func TestSystemdOfThisHost(t *testing.T) {
	needRoot(t)
	if !useHost() {
		t.Skip("the containers are used; MAINSTAY_SYSTEM_BACKEND=host runs the tests on this host's own systemd")
	}
	if !hostIsSystemd() {
		refuse(t, "neither is there systemd-nspawn, nor is this host's PID 1 systemd")
	}
	onMachine(t, thisHost(t))
}

func onContainer(t *testing.T, suite string, version int) {
	t.Helper()
	needRoot(t)
	switch {
	case os.Getenv("MAINSTAY_SYSTEM_BACKEND") == "host":
		t.Skip("MAINSTAY_SYSTEM_BACKEND=host: this host's own systemd is used")
	case useHost():
		refuse(t, "systemd-nspawn is not installed")
	}
	onMachine(t, boot(t, suite, version))
}

func onMachine(t *testing.T, m *machine) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, m) })
	}
}

// needRoot skips a test that nobody asked for, or that cannot work.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getenv("MAINSTAY_SYSTEM_TESTS") != "1" {
		t.Skip("boots systemd in containers; MAINSTAY_SYSTEM_TESTS=1, as `make test` sets it, runs it")
	}
	if uid := os.Geteuid(); uid != 0 {
		t.Skipf("needs root for systemd-nspawn, this is uid %d", uid)
	}
}

// refuse skips a test that this machine cannot run; for CI that is a failure.
func refuse(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

func useHost() bool {
	switch os.Getenv("MAINSTAY_SYSTEM_BACKEND") {
	case "host":
		return true
	case "container":
		return false
	}
	_, err := exec.LookPath("systemd-nspawn")
	return err != nil
}
