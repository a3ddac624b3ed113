import { icon } from './icons.js'
import { t } from './words.js'

const THANKS = 1_500

/** The words of a command, each a whole: no line ends after the hyphens of an option. */
function words(text) {
  return text.split(/( )/).map((word) => {
    if (word === ' ') return word
    const whole = document.createElement('span')
    whole.textContent = word
    return whole
  })
}

/** Text with a button that copies it, or its value where it is cut short, where the browser allows copying. */
class CopyText extends HTMLElement {
  connectedCallback() {
    const code = this.querySelector('code')
    if (code && !code.firstElementChild) code.replaceChildren(...words(code.textContent))
    if (!navigator.clipboard || this.querySelector('button')) return
    const text = this.getAttribute('value') ?? (code ?? this).textContent.trim()
    const button = document.createElement('button')
    const label = document.createElement('span')
    button.type = 'button'
    button.className = 'copy-button'
    button.title = t('Copy')
    label.className = 'unseen'
    label.textContent = t('Copy %s', text)
    label.setAttribute('aria-live', 'polite')
    button.append(icon('copy'), label)
    button.addEventListener('click', async () => {
      try { await navigator.clipboard.writeText(text) } catch { return }
      button.dataset.state = 'done'
      label.textContent = t('Copied')
      setTimeout(() => {
        delete button.dataset.state
        label.textContent = t('Copy %s', text)
      }, THANKS)
    })
    this.append(button)
  }
}
customElements.define('copy-text', CopyText)
